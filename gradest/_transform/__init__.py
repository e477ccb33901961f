"""The transform: from a loss that draws to an estimate of its expectation, with its gradient.

`expectation` stages the loss to a jaxpr; `reading` reads the jaxpr, once, into the nodes that
`program` has; `continuation` hands each draw what follows it as a function, and `ledger` accounts
in passing for the draws that need only their cost. `spend` is the cost that a loss adds to itself,
`while_loop` a loop that may hold draws. `downstream` asks what follows a draw, `keys` which draws
get one key, with the `numbering` of values; `complaints` has what is said of draws and constructs,
`arguments` and `expectation` what is said of the loss.
"""
