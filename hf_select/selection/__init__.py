"""Scores -> rows. `SELECTORS` is the table that the command line reads: name -> where the class lives."""

SELECTORS = {
    "longest": "hf_select.selection.baselines:Longest",
    "random": "hf_select.selection.baselines:Random",
    "round_robin": "hf_select.selection.round_robin:RoundRobin",
    "sample": "hf_select.selection.baselines:Sample",
    "top_k": "hf_select.selection.top_k:TopK",
}
