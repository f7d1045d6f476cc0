"""The memory that a client and a trunk server need, foreseen from shapes.

It is the largest resident memory of a process (Linux: VmHWM) of its own, as `fellrec trunk` and a
client of a deployment are: the other side is elsewhere. Its terms, in bytes:

    program      interpreter and libraries, measured in a fresh process (`program`), and 44 MiB that
                 they add when they first work: their code that is read in, buffers of gRPC and of
                 matrix products, threads
    weights      all tensors that it holds, mapped from files or not, and on the server a session's
                 copy of the adapter
    data         client only: texts of the catalogue, the client's own interactions, a tokenizer
    training     12 for each trained parameter: its gradient and AdamW's two moments; on the client
                 8 more, for the common start and the model that the order brought
    activations  f · p · k + p · t
    scores       client only: 8 · targets · classes, and what goes with the table of items
    frames       12 · positions · d, for each of the f micro-batches
    scoring      what is there instead of the three lines above while users are scored
    total        the first four, and the larger of scoring and of the three before it

f is the number of micro-batches under way at the same time, and p the number of places, padding
included, in the largest micro-batch of any client. k and t are what autograd keeps of one place in
all blocks, and what passes in one of them (`blocks`). Classes are the catalogue's items, or the
base's tokens where these are what is predicted: logits and their logarithms are there at once.
hllm holds vectors of all items and their lengthened kin with a gradient of each, recformer the
vectors alone. Of the largest frame the message that it came in, the frame itself, and its values as
float32 are there at once; codecs that send fewer bytes need the difference on the way to them.

Scoring, with p the places of the largest batch of users, is p · (4 d + s) where s passes in one
block, its frames as above, and on the client 8 · users · items for the scores and the vectors of
all items, twice. The items that recformer encodes are such a batch, and so are the titles of
bigrec. Where it
writes titles, keys and values of each beam and column in all blocks of a side come to it,
one block's repeated for each head of the queries, and on the client the logits of all beams: those
before, while the next ones are made, or three times where their sum of exponentials is taken.

Processes of a deployment give back what is freed (`deployment.allocator`). A simulation, both sides
in one process, keeps it, and takes more. On an accelerator the weights, activations and scores are
in its memory. With several clients at a time a server holds `training`, `activations`, `frames` and
its copy of the adapter for each.
"""

from fellrec.federation.memory.sides import foreseen_memory
from fellrec.federation.memory.widest import Widest

__all__ = ["Widest", "foreseen_memory"]
