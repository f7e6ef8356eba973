"""The policy lab: every policy on every trace at several loads, in virtual time, and what came of it.

`cases` says what is replayed, `runs` replays it (in many processes, remembering outcomes), `search` finds capacities,
`campaign` puts the runs together, `findings` reads what they mean, `tables` and `plots` write it down.
"""
