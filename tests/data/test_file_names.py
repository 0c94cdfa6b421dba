from hf_select.data.file_names import short_digest, slug


def test_a_slug_is_readable_and_safe():
    assert slug("Qwen/Qwen2.5 7B_Instruct!") == "qwen-qwen2-5-7b-instruct"
    assert slug("../..") == "" and slug("Été à l'école", 9) == "été-à-l-é"


def test_digests_keep_equal_slugs_apart():
    assert slug("a/b") == slug("a b") and short_digest("a/b") != short_digest("a b")
    assert short_digest({"a": 1, "b": 2}) == short_digest({"b": 2, "a": 1}) and len(short_digest("x")) == 8
