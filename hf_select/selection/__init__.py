"""Scores -> rows. `SELECTORS` is the table that the command line reads: name -> where the class lives."""

SELECTORS = {
    "longest": "hf_select.selection.baselines:Longest",
    "random": "hf_select.selection.baselines:Random",
    "top_k": "hf_select.selection.top_k:TopK",
}
