"""Measuring on another machine: the connection, the small runner that is sent there, its files."""
