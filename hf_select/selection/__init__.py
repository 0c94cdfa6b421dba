"""Scores -> rows. `SELECTORS` is the table that the command line reads: name -> where the class lives."""

SELECTORS = {
    "decontaminate": "hf_select.selection.decontaminate:Decontaminate",
    "dedup": "hf_select.selection.dedup:Dedup",
    "facility_location": "hf_select.selection.diversity:FacilityLocation",
    "farthest_first": "hf_select.selection.diversity:FarthestFirst",
    "kmeans_buckets": "hf_select.selection.diversity:KMeansBuckets",
    "longest": "hf_select.selection.baselines:Longest",
    "random": "hf_select.selection.baselines:Random",
    "round_robin": "hf_select.selection.round_robin:RoundRobin",
    "sample": "hf_select.selection.baselines:Sample",
    "score_then_threshold": "hf_select.selection.diversity:ScoreThenThreshold",
    "top_k": "hf_select.selection.top_k:TopK",
    "weighted_ranks": "hf_select.selection.combine:WeightedRanks",
}
