"""The trunk as a gRPC service: many clients, one coordinator, mutual TLS.

messages.py    what is said, and its checks
packing.py     the same as bytes, with numbers, digests and tensors
settings.py    addresses, limits, TLS files
tokens.py      a client's leave to come, from the coordinator
store.py       the server's folder: adapters and moments by label
budget.py      memory and workers that all sessions share
seat.py        one client's place: frames in order, none computed twice
admission.py   what has to agree before anyone is let in
registry.py    the coordinator's orders, and who may sit
metrics.py     what Prometheus is told
handlers.py    the methods as gRPC sees them
server.py      the process
channel.py     connections to it
diagnosis.py   why one can't be had
transport.py   the client's end
control.py     the coordinator's end
"""
