"""The transform: from a loss that draws to an estimate of its expectation, with its gradient.

`expectation` stages the loss to a jaxpr; `program` reads the jaxpr into nodes, once; `continuation`
hands each draw what follows it as a function, and `ledger` accounts in passing for the draws that
need only their cost. `spend` is the cost that a loss adds to itself, `while_loop` a loop that may
hold draws; `complaints` has every message.
"""
