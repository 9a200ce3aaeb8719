"""Load and save over TLS."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from bench import transfer
from bench.contenders import BARE, OURS, PEER, TWO_THREADS
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import BUSIEST, CPU, EXTRA, GB_S


@benchmark(contenders=(OURS, TWO_THREADS, PEER))
def tls(settings: Settings) -> Report:
    """Measure load and save over TLS, with a certificate made for the occasion, by the number of loop threads."""
    report = Report("over TLS", plotted=(GB_S, CPU, EXTRA))
    with tempfile.TemporaryDirectory() as folder:
        files = issue_certificate(Path(folder))
        with open_storage(settings.place, reserve_bytes=7 * settings.nbytes, tls=files) as storage:
            shared = (storage, settings.nbytes, settings.contenders, (1,), settings.rounds)
            loads, saves = transfer.load_rounds(*shared), transfer.save_rounds(*shared)
    transfer.add_thread_rows(report, {(name, "load"): observed for (name, _), observed in loads.items()})
    transfer.add_thread_rows(report, {(name, "save"): observed for (name, _), observed in saves.items()})
    for what in ("load", "save"):
        ours = (OURS, what)
        report.bars += [
            Bar.at_most(f"{what} over TLS: CPU beside {PEER}", 1 / 2, report.ratio(ours, (PEER, what), CPU)),
            Bar.at_most(f"{what} over TLS: extra memory, MiB", 64, report.median(OURS, what, EXTRA)),
            Bar.at_least(f"{what} over TLS: GB/s beside the bare loop", 0.8, report.ratio(ours, (BARE, what), GB_S)),
        ]
    report.remarks.append("The bare loop is one thread, which encrypts or decrypts everything: its GB/s is that limit.")
    report.remarks += [_limit(report, name, what) for name in (OURS, TWO_THREADS) for what in ("load", "save")]
    return report


def _limit(report: Report, contender: str, what: str) -> str:
    """What its busiest loop thread would move with a core to itself."""
    cost = report.median(contender, what, BUSIEST)
    limit = f"{1 / cost:.2f} GB/s" if cost else "not measured"
    return f"{what}, {contender}: the most that the loop threads' CPU time allows is {limit}."


def issue_certificate(folder: Path) -> tuple[str, str, str]:
    """A certificate for 127.0.0.1: paths of its chain, its key, and the authority that clients must trust.

    Raises:
        ClickException: trustme is not installed.
    """
    try:
        import trustme  # noqa: PLC0415  # optional
    except ImportError as exc:
        raise click.ClickException("this benchmark needs trustme: pip install trustme") from exc
    chain, key, authority = (str(folder / name) for name in ("chain.pem", "key.pem", "authority.pem"))
    made = trustme.CA()
    leaf = made.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_pem.write_to_path(key)
    made.cert_pem.write_to_path(authority)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    return chain, key, authority
