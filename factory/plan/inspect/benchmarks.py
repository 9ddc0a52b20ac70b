"""The questions of the benchmarks that are asked for: read where they are files, left for later on the hub."""

from pathlib import Path

from factory.benchmarks import questions
from factory.config.settings import Evaluate
from factory.plan.facts import BenchmarkFacts


def look_at_benchmark(name: str, asked: Evaluate) -> BenchmarkFacts:
    """Raises UserError where a folder does not hold the benchmark in its published layout."""
    path = asked.path
    if path is None or not Path(path).is_dir():
        questions.check_source(name, path)
        return BenchmarkFacts(path=path, questions=None, sha256=None)
    exam = questions.read(name, path, shots=asked.shots, max_samples=asked.max_samples)
    return BenchmarkFacts(path=str(Path(path).absolute()), questions=len(exam.questions), sha256=exam.digest())
