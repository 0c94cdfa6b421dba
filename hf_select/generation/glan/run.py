"""GLAN: synthetic instructions from a taxonomy of human knowledge (Li et al. 2024, arXiv:2402.13064).

taxonomy -> subjects of each discipline -> a syllabus for each subject -> questions on its sessions and key concepts ->
answers, by a model that may be another one. Nothing is sampled from existing instructions.

output_dir/
  glan.json                            the settings that shape the content; a run with others is refused
  taxonomy.yaml                        fields, sub-fields, disciplines: to be edited (unless a file of yours is used)
  lists/DISCIPLINE.jsonl               free lists of subjects, one a query
  subjects/DISCIPLINE.jsonl            subjects, one a line: change one, delete it, add your own
  outlines/DISCIPLINE.jsonl            free syllabi, one a subject
  syllabi/DISCIPLINE.jsonl             sessions and key concepts, one a subject: change them, or delete one to redo it
  questions/DISCIPLINE/SUBJECT.jsonl   questions
  answers/DISCIPLINE/SUBJECT.jsonl     answers
  pairs.parquet                        prompt, completion and where they come from, in the order of the taxonomy
  removed.jsonl                        what is not among them, and why
  summary.json, topics.html            counts and costs; the tree of topics

Every request has a key made of what it is about (discipline, query, subject, syllabus, draw), and its seed is made of
that key: what is there is never asked for again, whatever was added to the taxonomy or killed in between, and a run of
many pieces equals one of one piece. Below a changed line all is made again; below a deleted one nothing is used.

Left out, as in the paper: correctness of answers is not checked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_select.generation.glan.pairs import finish, gates
from hf_select.generation.glan.settings import GLANSettings, Until
from hf_select.generation.glan.stages import GLANRun
from hf_select.jobs.run_folder import claim_run_folder, exclusive_lock


@dataclass
class GLAN(GLANSettings):
    """Questions and answers on every topic of a taxonomy; its settings are those of GLANSettings.

    Raises: ValueError if a setting makes no sense.
    Reference: Li et al. 2024, arXiv:2402.13064.
    """

    def run(
        self,
        output_dir: str | Path,
        against: dict[str, Any] | None = None,
        until: Until = "pairs",
        retry_failed: bool = False,
    ) -> dict[str, Any]:
        """Make what is not there yet, and return the summary.

        Args:
            against: evaluation sets by name, none of whose text may be in a pair.
            until: stop after this stage, to look at its files and edit them; a later call resumes.
            retry_failed: ask again for what failed for good before: could not be read, was refused or cut.
        Raises: ValueError if the folder holds another run, if somebody else is at work in it, or if the server is not
            there, refuses the key or does not know the model.
        """
        run = GLANRun(self, Path(output_dir).expanduser(), retry_failed)
        copies, rule = gates(self, against or {})
        if self.taxonomy != "generate":
            run.tree.disciplines()  # their errors come before anything is made
        claim_run_folder(run.folder / "glan.json", {"settings": self.shaping()}, "generated pairs")
        with exclusive_lock(run.folder):
            run.make_taxonomy()
            if until != "taxonomy":
                run.make_subjects()
            if until not in ("taxonomy", "subjects"):
                run.make_syllabi()
            if until in ("questions", "pairs"):
                run.make_questions()
            return finish(run, copies, rule, answer=until == "pairs")
