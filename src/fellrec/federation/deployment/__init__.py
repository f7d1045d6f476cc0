"""Clients, coordinator and trunk on machines of their own; `federation.flower` carries messages."""
