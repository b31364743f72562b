"""The Dyck task."""
