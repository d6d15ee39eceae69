"""The 3D viewer: the committed bundle, and the page in a real browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import cmseg_core.report
from cmseg_core.report import render_report

VIEWER = Path(cmseg_core.report.__file__).parent / "viewer"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--disable-background-networking --disable-component-update --no-first-run --virtual-time-budget=6000 "
    "--window-size=1280,900"
).split()


def test_bundle_is_small_and_can_stand_inside_a_page():
    bundle = (VIEWER / "dist/viewer.js").read_text(encoding="ascii")
    assert len(bundle) < 1_000_000
    assert "</script" not in bundle and "<!--" not in bundle
    assert "SPDX-License-Identifier: MIT" in bundle


def test_bundle_was_made_from_these_sources(tmp_path):
    esbuild = VIEWER / "node_modules/.bin/esbuild"
    if not esbuild.exists():
        pytest.skip("the viewer's build tools are absent: run `npm ci` in cmseg_core/report/viewer to check the bundle")
    build = re.search(r'"build": "esbuild (.*) --outfile', (VIEWER / "package.json").read_text()).group(1)
    made = tmp_path / "viewer.js"
    subprocess.run([esbuild, *build.split(), f"--outfile={made}"], cwd=VIEWER, check=True, capture_output=True)
    assert made.read_bytes() == (VIEWER / "dist/viewer.js").read_bytes()


def rendered_page(path: Path, profile: Path, anchor: str, *flags: str) -> str:
    """The page's elements after its scripts have run; no name resolves, so that nothing can come from outside."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the report was not opened in a browser")
    command = [chromium, *FLAGS, *flags, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, "--dump-dom", f"{path.as_uri()}#{anchor}"], capture_output=True, timeout=120)
    # Scripts and styles would answer every search below.
    return re.sub(r"<(script|style)\b.*?</\1>", "", done.stdout.decode(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def report_file(build_context, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(build_context()), encoding="utf-8")
    return path


def test_a_browser_shows_the_cell_that_the_address_names(report_file, tmp_path):
    dom = rendered_page(report_file, tmp_path, "view-2")
    assert re.search(r'id="viewer" data-mode="cell"', dom)
    assert re.search(r'data-part="message" hidden', dom)
    assert re.search(r'data-part="scale"[^>]*><span>[\d.]+ (nm|µm)</span>', dom)
    assert dom.count("<canvas") == 1
    assert not re.search(r"<input[^>]*data-class[^>]*disabled", dom)


def test_a_browser_without_webgl_says_so(report_file, tmp_path):
    dom = rendered_page(report_file, tmp_path, "view-2", "--disable-3d-apis")
    assert re.search(r'id="viewer" data-mode="off"', dom)
    assert "cannot draw 3D" in dom
