"""The trainer decides: what trains, when, what is logged and what is saved."""
