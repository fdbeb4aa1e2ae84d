"""The HTTP side: status today, the Admin and control APIs next. Starlette on Hypercorn's Trio worker."""
