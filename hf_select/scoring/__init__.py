"""One scoring method a file. `SCORERS` is the table that the command line reads: name -> where the class lives."""

SCORERS = {
    "length": "hf_select.scoring.length:Length",
    "selectit": "hf_select.scoring.selectit:SelectIT",
}
