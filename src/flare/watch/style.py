"""How the status page looks, and what keeps it fresh. Nothing is loaded from elsewhere."""

from __future__ import annotations

from typing import Final

REFRESH: Final = 2  # seconds between updates of an open page

CSS: Final = """
:root {
  color-scheme: light dark;
  --ground: #f4f5f7; --card: #ffffff; --line: #e3e6ea; --text: #1b1f24; --muted: #5f6b7a;
  --flare: #c8421b; --flare-soft: #c8421b1f; --good: #1a7f37; --bad: #b42318; --track: #e9ebef;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1216; --card: #171b21; --line: #272d36; --text: #e6e9ee; --muted: #93a0b0;
    --flare: #ff8a5c; --flare-soft: #ff8a5c26; --good: #4ac26b; --bad: #ff7b72; --track: #272d36;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--ground); color: var(--text); padding: 24px clamp(12px, 3vw, 32px) 32px;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
#live { max-width: 1280px; margin: 0 auto; transition: opacity .3s; }
.stale #live { opacity: .45; }
.mono, .peer { font-size: .87em;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.muted { color: var(--muted); }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 14px; margin-bottom: 4px; }
h1 { font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; }
h1 b { color: var(--flare); font-weight: 750; }
.badge { border-radius: 99px; padding: 2px 11px; font-size: .82rem; font-weight: 600; color: var(--good);
  border: 1px solid currentColor; }
.badge.bad { color: var(--bad); }
.facts { margin-left: auto; color: var(--muted); }
.me { overflow-wrap: anywhere; color: var(--muted); margin-bottom: 18px; }
.alert { border: 1px solid; color: var(--bad); border-radius: 10px; padding: 9px 14px; margin-bottom: 14px; }
.tiles { display: grid; gap: 14px; grid-template-columns: 1.7fr 1fr 1fr 1.15fr; margin-bottom: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; min-width: 0; }
h2 { font-size: .8rem; font-weight: 600; color: var(--muted); margin-bottom: 6px; }
.big { font-size: 1.75rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; }
.big small { font-size: .95rem; font-weight: 450; color: var(--muted); letter-spacing: 0; }
.under { color: var(--muted); font-size: .87rem; margin-top: 6px; }
svg { display: block; width: 100%; }
.bar { height: 6px; margin-top: 10px; border-radius: 3px; overflow: hidden; background: var(--track); }
.bar rect { fill: var(--flare); }
.bar.full rect { fill: var(--bad); }
.spark { height: 46px; margin-top: 8px; }
.spark .floor { stroke: var(--line); vector-effect: non-scaling-stroke; }
.spark .area { fill: var(--flare-soft); }
.spark .edge { fill: none; stroke: var(--flare); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.split { display: grid; grid-template-columns: auto 1fr; gap: 3px 14px; }
.split dd { text-align: right; font-weight: 550; }
.split dt { color: var(--muted); }
.columns { display: grid; gap: 14px; grid-template-columns: 1.25fr 1fr; align-items: start; }
.columns > div { display: grid; gap: 14px; min-width: 0; }
table { border-collapse: collapse; width: 100%; }
th { font-size: .8rem; font-weight: 500; color: var(--muted); text-align: right; padding: 2px 0 6px 14px;
  white-space: nowrap; }
td { border-top: 1px solid var(--line); padding: 6px 0 6px 14px; text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.name { width: 100%; max-width: 0; overflow: hidden; text-overflow: ellipsis; }
td .agent { display: block; color: var(--muted); font-size: .82rem; overflow: hidden;
  text-overflow: ellipsis; }
td.wrap { white-space: normal; }
td.now { font-weight: 600; }
.none { color: var(--muted); padding: 4px 0 2px; }
ul { list-style: none; padding: 0; }
li { overflow-wrap: anywhere; padding: 3px 0; }
footer { margin-top: 18px; display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--muted);
  font-size: .87rem; }
footer span { margin-left: auto; }
a { color: inherit; text-underline-offset: 2px; }
@media (max-width: 1000px) {
  .tiles { grid-template-columns: 1fr 1fr; } .columns { grid-template-columns: 1fr; }
}
@media (max-width: 620px) {
  .facts { margin-left: 0; width: 100%; } .wide { display: none; }
  .tiles { gap: 10px; } .tiles .card { padding: 12px; } .tiles .broad { grid-column: 1 / -1; }
  .big { font-size: 1.45rem; }
}
"""

SCRIPT: Final = f"""
const again = async () => {{
  if (!document.hidden) {{
    try {{
      const answer = await fetch(location.href, {{cache: "no-store"}});
      if (!answer.ok) throw answer.status;
      const text = await answer.text();  // its style has a nonce of its own, and would be refused aloud
      const page = new DOMParser().parseFromString(text.slice(text.indexOf("<body>")), "text/html");
      document.getElementById("live").replaceWith(page.getElementById("live"));
      document.body.classList.remove("stale");
    }} catch {{ document.body.classList.add("stale"); }}
  }}
  setTimeout(again, {REFRESH * 1000});
}};
setTimeout(again, {REFRESH * 1000});
"""
