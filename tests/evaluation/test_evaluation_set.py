from pathlib import Path

import pytest

from wan_vae.config import config_folder
from wan_vae.errors import UserError
from wan_vae.evaluation.evaluate import Shot, read_evaluation_set

GOOD = "frames: 4\nshort_side: 16\nshots:\n  a.mkv: [0, 3, 20]\n"


def test_shots_end_at_the_next_or_after_so_many_frames(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").touch()
    (tmp_path / "bench.yaml").write_text(GOOD, encoding="utf-8")
    bench = read_evaluation_set(tmp_path / "bench.yaml", tmp_path)
    clip = tmp_path / "a.mkv"
    assert bench.short_side == 16
    assert bench.shots == (Shot(clip, 0, 3), Shot(clip, 3, 7), Shot(clip, 20, 24))
    assert bench.shots[1].name == "a-003"


def test_the_shipped_bench(tmp_path: Path) -> None:
    for name in ("bikes", "bigbuckbunny", "carphone_pristine"):
        (tmp_path / f"{name}.mp4").touch()
    bench = read_evaluation_set(config_folder() / "evaluation" / "bench.yaml", tmp_path)
    assert bench.short_side == 256
    assert [shot.name for shot in bench.shots][:2] == ["bikes-000", "bikes-030"]
    assert len(bench.shots) == 8
    assert all(0 < shot.stop - shot.start <= 49 for shot in bench.shots)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("frames: [", "is not a YAML file"),
        ("- 1", "must have frames, short_side, shots"),
        (GOOD + "speed: 3\n", "and nothing else"),
        (GOOD.replace("frames: 4", "frames: 0"), "frames: 0"),
        (GOOD.replace("16", "true"), "short_side: True"),
        ("frames: 4\nshort_side: 16\nshots: {}\n", "shots: {}"),
        (GOOD.replace("[0, 3, 20]", "[]"), r"a\.mkv: \[\]"),
        (GOOD.replace("[0, 3, 20]", "[3, 3]"), r"a\.mkv: \[3, 3\]"),
        (GOOD.replace("[0, 3, 20]", "[-1]"), r"a\.mkv: \[-1\]"),
        (GOOD.replace("[0, 3, 20]", "0"), r"a\.mkv: 0"),
        (GOOD.replace("a.mkv", "b.mkv"), r"b\.mkv, which is not in"),
    ],
)
def test_bad_lists(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").touch()
    path = tmp_path / "bench.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"bench\.yaml .*{words}"):
        read_evaluation_set(path, tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_evaluation_set(tmp_path / "nowhere.yaml", tmp_path)
