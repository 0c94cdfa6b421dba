"""Look up source datasets and models on the Hub: revision, licence and language."""

from dataclasses import replace

from hf_select.data.loading import located
from hf_select.hub.records import ModelRecord, SourceRecord
from hf_select.hub.repository import translate_hub_errors
from hf_select.hub.scrub import scrubbed
from hf_select.jobs.retry import with_retries
from hf_select.reports.ledger import is_hub_id


def look_up_source(
    source: str | None, split: str, token: str | None = None, config: str | None = None
) -> SourceRecord:
    """A source by name; for a dataset on the Hub with its latest revision, and the licence and language of its card.

    Raises: ValueError if the Hub refuses; ConnectionError if it cannot be reached.
    """
    source, split, config = located(source or "", split, config)
    if not source or not is_hub_id(source):
        return SourceRecord(name=scrubbed(source) if source else "a dataset", split=split)
    from huggingface_hub import HfApi

    info = translate_hub_errors(lambda: with_retries(lambda: HfApi(token=token).dataset_info(source), source), source)
    card = info.card_data or {}
    language = card.get("language")
    return SourceRecord(
        name=source,
        on_hub=True,
        split=split,
        config=config,
        revision=info.sha,
        license=card.get("license"),
        language=[language] if isinstance(language, str) else language,
    )


def look_up_model(model: ModelRecord, token: str | None = None) -> ModelRecord:
    """The model with whether it is on the Hub, and the licence on its card.

    It is recorded as not on the Hub if it cannot be seen, if HF_HUB_OFFLINE is set, or if its name has no namespace:
    the name that a server gives a model may be that of another model on the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    def look_up() -> ModelRecord:
        try:
            card = HfApi(token=token).model_info(model.name).card_data or {}
        except (OfflineModeIsEnabled, RepositoryNotFoundError):
            return replace(model, on_hub=False)
        return replace(model, on_hub=True, license=card.get("license"))

    if "/" not in model.name or not is_hub_id(model.name):
        return replace(model, on_hub=False)
    return translate_hub_errors(lambda: with_retries(look_up, model.name), model.name)
