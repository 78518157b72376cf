"""The page's style sheet: no outside files, light and dark, readable on a telephone."""

CSS = """
:root { color-scheme: light dark; --page: #fcfcfb; --text: #1c2024; --muted: #60646c; --line: #dcdee2; --card: #ffffff;
  --series: #1f6feb; --band: #1a7f3726; --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #111315; --text: #eceef0; --muted: #9ba1a9; --line: #31363b;
  --card: #191c1f; --series: #6cb0ff; --band: #3fb95033; --good: #56d364; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 24px 16px 64px; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 40px 0 12px; }
.muted, figcaption, th { color: var(--muted); font-weight: 400; } .muted { margin: 0 0 8px;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td:nth-child(2), td:nth-child(3) { white-space: nowrap; } .wide { overflow-x: auto; margin-bottom: 12px; }
@media (max-width: 480px) { table { font-size: 0.9rem; } th, td { padding: 6px 5px; } }
tr.first td { border-top: 2px solid var(--line); }
.grid, .pair { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
figure, .card { margin: 0; padding: 12px 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.card p, blockquote { margin: 4px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.example { margin-bottom: 28px; }
blockquote { color: var(--muted); padding-left: 12px; border-left: 3px solid var(--line); }
.target { color: var(--good); } .off { color: var(--bad); }
svg { display: block; width: 100%; height: auto; margin-top: 6px; } svg text { fill: var(--muted); font-size: 12px; }
.rule { stroke: var(--line); stroke-width: 1; }
.series { fill: none; stroke: var(--series); stroke-width: 2; }
.mark { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.alarm { border-left: 4px solid var(--bad); margin-bottom: 12px; }
.alarm h3 { font-size: 1rem; margin: 0; color: var(--bad); overflow-wrap: anywhere; }
.alarm h3 span { color: var(--muted); font-weight: 400; }
code { font-size: 0.92em; overflow-wrap: anywhere; }
.dot { fill: var(--series); } .band { fill: var(--band); }
details { margin-top: 12px; } summary { cursor: pointer; } pre { overflow-x: auto; font-size: 13px; }
"""
