"""What a fit keeps of a stream of points."""
