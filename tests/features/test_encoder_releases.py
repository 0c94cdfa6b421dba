"""What differs between releases of sentence-transformers, on stand-ins for the two forms of an encoder."""

import pytest

from hf_select.features._compat import embedding_dimension


class New:
    """As in 6.2."""

    def get_embedding_dimension(self) -> int:
        return 3


class Old:
    """As in 5.0."""

    def get_sentence_embedding_dimension(self) -> int:
        return 3


@pytest.mark.parametrize("encoder", [New, Old])
def test_the_size_of_vectors_is_read_by_the_name_that_the_release_has(encoder):
    assert embedding_dimension(encoder()) == 3
