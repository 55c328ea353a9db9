"""Privacy, measured: what a server learns from the payloads of a run, what a defence costs, what a bad client does.

The attacks know payloads by the names of their tensors and name no system. Each one is a module of a page, takes an
`Observed` client and returns `Finding`s with two controls: the same score for images that the client never had, which
has to be at chance, and for a payload that leaks by design, which has to be nearly perfect.
"""
