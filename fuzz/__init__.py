"""What must hold of the parsers of untrusted bytes, and programs that search for bytes that break it."""
