"""Clips are pure functions of (seed, epoch, index, copy), copies share their frames, views cover a protocol."""

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clipfiles import cut, number_of, write_audio, write_video
from torch.utils.data import DataLoader

from openmvit.data.badfiles import BadFiles
from openmvit.data.clips import ClipSampling
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import LOST, REPLACED, SampleTable
from openmvit.data.video import open_video, probe_video
from openmvit.data.video_reader import VideoDecodeError
from openmvit.data.video_transforms import ClipTestTransform, ClipTrainTransform
from openmvit.data.videos import VideoDataset, VideoViews, holds_videos, open_videos, part_of
from openmvit.errors import UserError

SAMPLING = ClipSampling(4, 3)


@pytest.fixture
def root(tmp_path):
    """Two classes of five clips, three sizes, rates and lengths among them."""
    shapes = [(60, 30, (96, 64)), (40, 25, (80, 100)), (9, 12, (120, 80)), (60, 30, (96, 64)), (90, 60, (96, 64))]
    for name in ("jump", "run"):
        for i, (frames, fps, size) in enumerate(shapes):
            write_video(tmp_path / "set" / "train" / name / f"{i}.mp4", frames, fps=fps, size=size)
        write_video(tmp_path / "set" / "val" / name / "0.mkv", 50)
    return tmp_path / "set"


def frames_only(frames, generator):
    """A transform that shows which frames were chosen, whatever their size."""
    return frames.permute(3, 0, 1, 2).float()


def dataset(root, transform=None, seed=5, sampling=SAMPLING, **changes):
    table = open_videos(root).splits["train"]
    fields = {"seed": seed, "multilabel": False, "num_classes": 2} | changes
    return VideoDataset(table, sampling, transform or ClipTrainTransform(32), **fields)


def shown(sample):
    return [number_of(frame) for frame in sample["image"].permute(1, 2, 3, 0).numpy()]


def test_contents_of_a_sample(root):
    sample = dataset(root)[(0, 7)]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == {
        "image": ((3, 4, 32, 32), torch.float32),
        "label": ((), torch.int64),
        "index": ((), torch.int64),
        "bad": ((), torch.int64),
    }
    assert (int(sample["label"]), int(sample["index"]), int(sample["bad"])) == (1, 7, 0)


def test_copies_share_the_clip_and_differ_in_augmentation(root):
    plain = dataset(root, frames_only)
    starts = set()
    for epoch in range(12):
        chosen = [shown(plain[(epoch, 0, copy)]) for copy in range(3)]
        assert chosen[0] == chosen[1] == chosen[2]
        assert [b - a for a, b in zip(chosen[0], chosen[0][1:], strict=False)] == [3, 4, 3]
        starts.add(chosen[0][0])
    assert len(starts) > 5
    data = dataset(root)
    copies = [data[(1, 0, copy)]["image"] for copy in range(2)]
    assert not torch.equal(*copies)
    # The order of the calls, and the clip kept for the copies, make no difference.
    fresh = dataset(root)
    assert torch.equal(fresh[(1, 0, 1)]["image"], copies[1])
    assert torch.equal(fresh[(2, 3)]["image"], data[(2, 3, 0)]["image"])
    assert torch.equal(fresh[(1, 0, 0)]["image"], copies[0])


def test_same_sample_in_any_order_with_any_workers(root):
    (root / "train" / "jump" / "3.mp4").write_bytes(b"")
    data = dataset(root)
    expected = {(epoch, index): data[(epoch, index)] for epoch in (1, 0) for index in range(9, -1, -1)}
    assert [int(expected[(0, index)]["bad"]) for index in range(10)] == [0, 0, 0, REPLACED, *[0] * 6]
    for workers in (0, 2):
        sampler = ResumableSampler(10, seed=workers, shuffle=True)
        sampler.set_epoch(1)
        for batch in DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers):
            for i, index in enumerate(batch["index"].tolist()):
                for name, value in expected[(1, index)].items():
                    assert torch.equal(batch[name][i], value), (workers, index, name)


SCRIPT = """
import hashlib, sys
from openmvit.data.clips import ClipSampling
from openmvit.data.videos import VideoDataset, open_videos
from openmvit.data.video_transforms import ClipTrainTransform
table = open_videos(sys.argv[1]).splits["train"]
data = VideoDataset(table, ClipSampling(4, 3), ClipTrainTransform(32), seed=5, multilabel=False, num_classes=2)
print(hashlib.sha256(b"".join(data[(1, i)]["image"].numpy().tobytes() for i in (8, 2, 4))).hexdigest())
"""


def test_same_bits_in_another_interpreter(root):
    data = dataset(root)
    here = hashlib.sha256(b"".join(data[(1, i)]["image"].numpy().tobytes() for i in (8, 2, 4))).hexdigest()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == here


def test_six_kinds_of_broken_file_are_replaced_and_listed(root, tmp_path):
    run = root / "train" / "run"
    (run / "a_zero.mp4").touch()
    (run / "b_text.mp4").write_text("no video")
    cut(write_video(run / "c_cut.mp4", 60), 0.5)
    cut(write_video(run / "d_cut.mkv", 120), 0.3)
    write_audio(run / "e_sound.mp4")
    write_video(run / "f_gone.mp4", 5)
    data = dataset(root, sampling=ClipSampling(4, 30))  # as long as the files, so that every part is asked for
    (run / "f_gone.mp4").unlink()
    bad_files = BadFiles(0.5, len(data), tmp_path / "bad_files.txt", read=lambda table, i: probe_video(table.path(i)))
    for index in range(len(data)):
        sample = data[(0, index)]
        bad_files.add(data.table, sample["index"][None], sample["bad"][None])
    lines = (tmp_path / "bad_files.txt").read_text().splitlines()
    reasons = {Path(line.partition("\t")[0]).name: line.partition("\t")[2] for line in lines}
    assert sorted(reasons) == ["a_zero.mp4", "b_text.mp4", "c_cut.mp4", "d_cut.mkv", "e_sound.mp4", "f_gone.mp4"]
    assert reasons["a_zero.mp4"] == "the file is empty"
    assert reasons["b_text.mp4"] == reasons["c_cut.mp4"] == "not a video, or cut off or damaged where its index is"
    assert reasons["d_cut.mkv"].endswith("s of 4.00 s, truncated")
    assert reasons["e_sound.mp4"] == "no video stream (audio only)"
    assert reasons["f_gone.mp4"] == "the file does not exist"


def test_nothing_readable_is_lost(tmp_path):
    for name in "ab":
        for i in range(3):
            path = tmp_path / name / f"{i}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    sample = dataset(tmp_path)[(0, 0)]
    assert int(sample["bad"]) == LOST
    assert sample["image"].shape == (3, 4, 32, 32)


def test_parts_of_files(tmp_path):
    write_video(tmp_path / "long.mp4", 150)
    (tmp_path / "l.csv").write_text("path,label,start,end,split\nlong.mp4,a,1.0,2.0,train\nlong.mp4,b,3,,train\n"
                                    "long.mp4,a,,0.5,val\nlong.mp4,b,9,,val\n")  # fmt: skip
    data = open_videos(tmp_path / "l.csv")
    train = VideoDataset(data.splits["train"], SAMPLING, frames_only, seed=0, multilabel=False, num_classes=2)
    first = np.array([shown(train[(epoch, 0)]) for epoch in range(40)])
    assert first.min() >= 30
    assert first.max() <= 59
    assert first.max() - first.min() > 20
    assert min(shown(train[(0, 1)])) >= 90
    with open_video(tmp_path / "long.mp4") as video:
        assert part_of(video, data.splits["val"].span(0)) == (0, 15)
        with pytest.raises(VideoDecodeError, match=r"9 s is behind its end at 5\.00 s"):
            part_of(video, data.splits["val"].span(1))


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (5, 1), (2, 3)])
def test_views(root, clips, crops):
    table = open_videos(root).splits["val"]
    views = VideoViews(table, SAMPLING, ClipTestTransform(32, crops), clips=clips, multilabel=False, num_classes=2)
    assert len(views) == 2 * clips * crops
    keys = [
        key for rank in range(2) for key in ResumableSampler(len(views), seed=0, shuffle=False, rank=rank, world_size=2)
    ]
    assert sorted(index for _, index in keys) == list(range(len(views)))
    seen = set()
    with open_video(table.path(1)) as video:
        for _, number in keys:
            sample = views[number]
            index, view = divmod(number, clips * crops)
            seen.add((index, view))
            assert (int(sample["index"]), int(sample["view"])) == (index, view)
            assert (int(sample["label"]), int(sample["bad"])) == (index, 0)
            assert torch.equal(views[(3, number)]["image"], sample["image"])
            if index == 1:
                frames = video.frames(SAMPLING.test_indices(50, 30.0, view // crops, clips))
                assert torch.equal(ClipTestTransform(32, crops)(frames, view % crops), sample["image"])
    assert seen == {(index, view) for index in (0, 1) for view in range(clips * crops)}


def test_unreadable_view_is_not_counted(root):
    (root / "val" / "run" / "0.mkv").write_bytes(b"x")
    table = open_videos(root).splits["val"]
    views = VideoViews(table, SAMPLING, ClipTestTransform(32), clips=2, multilabel=False, num_classes=2)
    assert [int(views[i]["bad"]) for i in range(4)] == [0, 0, 1, 1]
    assert not views[2]["image"].any()
    with pytest.raises(UserError, match="exactly 1 for segments"):
        VideoViews(
            table, ClipSampling(4, rule="segments"), ClipTestTransform(32), clips=2, multilabel=False, num_classes=2
        )


def test_images_and_videos_are_told_apart(root, tmp_path, fill):
    assert holds_videos(root)
    fill(tmp_path / "pictures" / "a", 2)
    fill(tmp_path / "pictures" / "b", 2)
    assert not holds_videos(tmp_path / "pictures")
    (tmp_path / "v.csv").write_text("path,label\nset/train/run/0.mp4,a\n")
    (tmp_path / "i.csv").write_text("path,label\npictures/a/000.jpg,a\n")
    assert holds_videos(tmp_path / "v.csv")
    assert not holds_videos(tmp_path / "i.csv")
    with pytest.raises(UserError, match="does not exist"):
        holds_videos(tmp_path / "nothing")


class _Walk(torch.utils.data.Dataset):
    """The table of a million rows, looked up as the video data set does, without the decoding."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, key):
        index = key[1]
        # What the data set asks of a row; of most only the path's bytes, as Path objects take longest.
        start, end = self.table.path_ends[index : index + 2].tolist()
        assert len(self.table.path_bytes[start:end].tobytes()) == 35
        assert index % 64 or self.table.path(index).suffix == ".mp4"
        return (self.table.span(index), self.table.labels(index)) and (memory() if index % 1000 == 0 else 0)


def memory():
    """Private memory of this process in MB."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith(("Private_Clean", "Private_Dirty"))) // 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_million_rows_cost_no_objects_and_workers_stay_flat():
    # In a process of its own: pages that this one shares with forks of other tests become its own when those end.
    code = "import test_video_dataset; test_video_dataset.walk_a_million_rows()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def walk_a_million_rows():
    count = 1_000_000
    gc.collect()
    before = memory()
    rows = ((f"train/class_{i % 400:03d}/video_{i:09d}.mp4", (i % 400,)) for i in range(count))
    table = SampleTable.build(Path("/data"), rows, np.tile([[0.0, 10.0]], (count, 1)))
    gc.collect()
    assert memory() - before < 140
    sampler = ResumableSampler(count, seed=0, shuffle=True)
    loader = DataLoader(_Walk(table), batch_size=2000, sampler=sampler, num_workers=1, collate_fn=list)
    used = [value for batch in loader for value in batch if value]
    assert len(used) == 1000
    # Growth of 2 to 3 MB on an idle machine, once about 8 under load, cause unproven; an object per row would be 50.
    assert max(used) < 45
    assert max(used[500:]) - min(used[300:400]) < 12
