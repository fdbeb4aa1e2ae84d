"""Trio and sockets: listeners, sessions, the dialer and the pump. Sees a `Snapshot`, never a file."""
