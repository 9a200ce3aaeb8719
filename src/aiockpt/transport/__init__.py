"""Connections that land and send bulk bytes without copying them."""
