"""GLAN: synthetic instructions from a taxonomy of human knowledge (Li et al. 2024, arXiv:2402.13064).

taxonomy -> subjects of each discipline -> a syllabus for each subject -> questions on its sessions and key concepts ->
answers, which may come from another model. No existing instructions are used.

output_dir/
  glan.json                            settings that the content depends on; a run with others is rejected
  taxonomy.yaml                        fields, sub-fields, disciplines; may be edited (absent with a taxonomy of yours)
  lists/DISCIPLINE.jsonl               lists of subjects as free text, one per query
  subjects/DISCIPLINE.jsonl            subjects, one per line; edit or delete them, or add your own
  outlines/DISCIPLINE.jsonl            syllabi as free text, one per subject
  syllabi/DISCIPLINE.jsonl             sessions and key concepts, one line per subject; edit them, or delete a line to
                                       request it again
  questions/DISCIPLINE/SUBJECT.jsonl   questions
  answers/DISCIPLINE/SUBJECT.jsonl     answers
  pairs.parquet                        prompt, completion and their origin, in the order of the taxonomy
  removed.jsonl                        questions without a pair, with reasons
  summary.json, topics.html            counts and costs; the tree of topics

Each request has a key made of its content (discipline, query, subject, syllabus, sample), and its seed is made of the
key. So a finished request is never repeated, whatever was added to the taxonomy or interrupted in between, and a run
in several parts equals one without interruption. Below an edited line everything is requested again; files below a
deleted line are no longer used.

As in the paper, the correctness of answers is not checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_select.generation.glan.pairs import build_filters, finish
from hf_select.generation.glan.settings import GLANSettings, Until
from hf_select.generation.glan.stages import GLANRun
from hf_select.generation.glan.summary import GLANSummary
from hf_select.jobs.run_folder import claim_run_folder, exclusive_lock


@dataclass
class GLAN(GLANSettings):
    """Generates questions and answers on every topic of a taxonomy. Its settings are those of `GLANSettings`.

    Raises: ValueError if a setting is invalid.
    Reference: Li et al. 2024, arXiv:2402.13064.
    """

    def run(
        self,
        output_dir: str | Path,
        against: Mapping[str, Any] | None = None,
        until: Until = "pairs",
        retry_failed: bool = False,
    ) -> GLANSummary:
        """Generate what the folder does not have yet, and return the summary.

        Args:
            against: evaluation sets by name; questions and pairs that overlap with them are left out.
            until: stop after this stage, for example to edit its files; a later call resumes.
            retry_failed: request again what failed permanently: unparsable, refused or cut off.
        Raises: ValueError if the folder belongs to another run or is in use by another process, or if the server is
            not there, refuses the key or does not know the model.
        """
        run = GLANRun(self, Path(output_dir).expanduser(), retry_failed)
        dedup, decontaminate = build_filters(self, against or {})
        if self.taxonomy != "generate":
            run.tree.disciplines()  # raises before anything is written
        claim_run_folder(run.folder / "glan.json", {"settings": self.content_settings()}, "generated pairs")
        with exclusive_lock(run.folder):
            run.make_taxonomy()
            if until != "taxonomy":
                run.make_subjects()
            if until not in ("taxonomy", "subjects"):
                run.make_syllabi()
            if until in ("questions", "pairs"):
                run.make_questions()
            return finish(run, dedup, decontaminate, answer=until == "pairs")
