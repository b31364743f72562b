"""Any torch module, by hooks."""
