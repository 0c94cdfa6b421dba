"""From scores or vectors to rows. `SELECTORS` maps the names on the command line to MODULE:CLASS."""

SELECTORS = {
    "decontaminate": "hf_select.selection.decontaminate:Decontaminate",
    "dedup": "hf_select.selection.dedup:Dedup",
    "facility_location": "hf_select.selection.facility_location:FacilityLocation",
    "farthest_first": "hf_select.selection.farthest_first:FarthestFirst",
    "kmeans_buckets": "hf_select.selection.kmeans_buckets:KMeansBuckets",
    "longest": "hf_select.selection.baselines:Longest",
    "matching_pursuit": "hf_select.selection.matching_pursuit:MatchingPursuit",
    "random": "hf_select.selection.baselines:Random",
    "round_robin": "hf_select.selection.round_robin:RoundRobin",
    "sample": "hf_select.selection.baselines:Sample",
    "score_then_threshold": "hf_select.selection.score_then_threshold:ScoreThenThreshold",
    "top_k": "hf_select.selection.top_k:TopK",
    "weighted_ranks": "hf_select.selection.weighted_ranks:WeightedRanks",
}
