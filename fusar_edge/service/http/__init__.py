"""The service over HTTP: what comes in, what can be asked, what streams out."""
