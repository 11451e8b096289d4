"""Bytes of a table, and to download for it, before anything is downloaded."""
