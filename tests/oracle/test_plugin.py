"""The pytest plugin, as users run it: in fresh pytest runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest_plugins = "pytester"

MATMUL = """
    import numpy as np

    def right(a, b):
        return a @ b

    def wrong(a, b):
        return (a @ b) * np.float32(1.001)
"""


def test_the_fixture_judges_and_counts(pytester):
    pytester.makepyfile(MATMUL + "    def test_it(oracle):\n        assert oracle.check(right, 'matmul')\n        oracle.assert_matches(np.ones(3, 'f4'), oracle.reference.add(np.ones(3, 'f4'), np.zeros(3, 'f4')))\n")
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(passed=1)
    done.stdout.re_match_lines([r"oracle: \d+ cases judged"])


def test_a_failure_shows_the_explanation_and_is_saved_with_the_line_that_repeats_it(pytester):
    pytester.makepyfile(MATMUL + "    def test_it(oracle):\n        oracle.assert_op(wrong, 'matmul')\n")
    done = pytester.runpytest_subprocess("--oracle-save-failures=bad", "--oracle-seed=3")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*matmul (wrong), float32, seed 3: FAILED*", "*to repeat: oracle.case('matmul', * seed=3*", "*saved bad*small*.npz*"])
    saved = np.load(sorted(pytester.path.glob("bad/*small_reals.npz"))[0])
    assert {"input_0", "input_1", "got", "want", "gauge", "repeat"} <= set(saved.files)
    from tinynet import oracle

    case = eval(str(saved["repeat"]), {"oracle": oracle})
    assert np.array_equal(case.inputs()[0][0], saved["input_0"])
    loaded = oracle.load_case(sorted(pytester.path.glob("bad/*small_reals.npz"))[0])
    assert loaded.id == case.id and all(np.array_equal(a, b) for a, b in zip(loaded.inputs()[0], case.inputs()[0]))
    assert not list(pytester.path.glob("bad/*.unfinished"))


def test_cases_of_ones_own_and_single_judgements_are_saved_too(pytester):
    pytester.makepyfile(
        """
        import numpy as np

        def test_own(oracle):
            case = oracle.Case.of("conv2d", np.ones((1, 2, 5, 4), "f4"), np.ones((3, 2, 2, 2), "f4"), None, stride=2, padding="same")
            assert oracle.check(lambda x, w, b, **p: oracle.honest_function("conv2d")(x, w, b, **p) + np.float32(1), "conv2d", cases=[case])

        def test_one(oracle):
            oracle.assert_matches(np.ones(9, "f4"), oracle.reference.relu(np.full(9, 2, "f4")))
        """
    )
    done = pytester.runpytest_subprocess("--oracle-save-failures=bad")
    done.assert_outcomes(failed=2)
    files = sorted(path.name for path in pytester.path.glob("bad/*.npz"))
    assert len(files) == 3 and any("not-contiguous" in name for name in files), files  # the case, its strided twin, the judgement
    done.stdout.fnmatch_lines(["*to repeat: oracle.load_case('bad*"])
    from tinynet import oracle

    case = oracle.load_case(next(path for path in pytester.path.glob("bad/*given_user.npz")))
    assert oracle.check(oracle.honest_function("conv2d"), "conv2d", cases=[case])


def test_collecting_alone_is_no_failure(pytester):
    pytester.makepyfile("def test_it(oracle):\n    pass\n")
    assert pytester.runpytest_subprocess("--collect-only", "--oracle-min-cases=5").ret == 0


def test_loose_results_pass_only_on_request(pytester):
    pytester.makepyfile(
        """
        import numpy as np

        def test_it(oracle):
            rng = np.random.default_rng(0)
            a, b = rng.standard_normal((4, 10_000), "f4"), rng.standard_normal((10_000, 3), "f4")
            want = oracle.reference.matmul(a, b)
            assert oracle.judge((want.value + 1000 * 2.0**-24 * want.gauge).astype("f4"), want)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(failed=1)
    pytester.runpytest_subprocess("--oracle-lenient").assert_outcomes(passed=1)


def test_random_numbers_repeat_and_their_seed_is_printed_on_failure(pytester):
    pytester.makepyfile("def test_a(oracle_rng):\n    assert not print('drew', oracle_rng.integers(2**40))\n\ndef test_b(oracle_rng):\n    assert False, oracle_rng.integers(2**40)\n")

    def drawn(*options):
        done = pytester.runpytest_subprocess("-s", *options)
        done.stdout.fnmatch_lines(["*oracle_rng was numpy.random.default_rng(*"])
        return [line for line in done.outlines if "drew" in line]

    assert drawn() == drawn() != drawn("--oracle-seed=1")


def test_too_few_cases_fail_the_run(pytester):
    pytester.makepyfile(MATMUL + "    def test_it(oracle):\n        assert oracle.check(right, 'matmul', cases=lambda c: c.label == 'small')\n")
    done = pytester.runpytest_subprocess("--oracle-min-cases=50")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*3 cases were judged, --oracle-min-cases wants 50*"])
    assert pytester.runpytest_subprocess("--oracle-min-cases=3").ret == 0


def test_a_run_that_does_not_use_it_pays_next_to_nothing():
    """Under 10 ms and no numpy: the least of several, since others compute beside us."""
    code = "import sys, time, pytest; began = time.perf_counter(); import tinynet_pytest; print(time.perf_counter() - began, *[m for m in ('numpy', 'tinynet', 'numba') if m in sys.modules])"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) < 0.01


def test_pytest_finds_it_without_being_told(pytester):
    done = pytester.runpytest_subprocess("--help")
    done.stdout.fnmatch_lines(["*--oracle-lenient*", "*--oracle-seed=N*", "*--oracle-save-failures=DIR*", "*--oracle-min-cases=N*"])
