#!/usr/bin/env python3
"""Checks the documents: every page of docs/ is in docs/SUMMARY.md, and every relative link, with its
anchor, leads somewhere.

    scripts/docs.py          checks README.md, CONTRIBUTING.md and docs/
    scripts/docs.py --test   checks this script itself

That the command lines in them are understood is a test: tests/cli/documented.rs.
"""
import pathlib
import re
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
FENCE = re.compile(r'^\s*(```|~~~)')
HEADING = re.compile(r'^(#{1,6})\s+(.*?)\s*#*$')
LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)(?:\s+"[^"]*")?\)')
ID = re.compile(r'<a (?:id|name)="([^"]+)"')


def prose(text):
    """The text without code, with as many lines."""
    fenced = False
    kept = []
    for line in text.splitlines():
        if FENCE.match(line):
            fenced = not fenced
            line = ''
        kept.append('' if fenced else line)
    # Code in a line may not hold links, and may span two lines.
    return re.sub(r'`[^`]*`', lambda code: '\n' * code.group().count('\n'), '\n'.join(kept))


def anchors(text):
    """The anchors of a page, as GitHub and mdBook make them of headings."""
    found, fenced = set(ID.findall(text)), False
    for line in text.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else HEADING.match(line)
        if not heading:
            continue
        words = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading.group(2)).lower()
        anchor = re.sub(r'[^\w\- ]', '', words).replace(' ', '-')
        number, unique = 0, anchor
        while unique in found:
            number += 1
            unique = '%s-%d' % (anchor, number)
        found.add(unique)
    return found


def links(page):
    """The links of a page: line number and target."""
    for number, line in enumerate(prose(page.read_text()).splitlines(), 1):
        for target in LINK.findall(line):
            yield number, target


def wrong_links(page, top):
    for number, target in links(page):
        if re.match(r'[a-z][a-z0-9+.-]*:', target):
            continue
        path, _, anchor = target.partition('#')
        there = (page.parent / path).resolve() if path else page
        where = '%s:%d: %s' % (page.relative_to(top), number, target)
        in_site = top / 'docs' in page.parents and page.name != 'SUMMARY.md'
        if not there.exists():
            yield where + ': no such file'
        elif in_site and top / 'docs' not in there.parents:
            yield where + ': leads out of docs/, and nowhere in the site'
        elif in_site and there.name == 'README.md':
            yield where + ': in the site that is index.html; link to its directory'
        elif anchor and there.suffix == '.md' and anchor not in anchors(there.read_text()):
            yield where + ': no such heading'


def not_in_summary(docs):
    summary = docs / 'SUMMARY.md'
    listed = {(docs / target.partition('#')[0]).resolve() for _, target in links(summary)}
    for page in sorted(docs.rglob('*.md')):
        if page != summary and page.resolve() not in listed:
            yield '%s is not in docs/SUMMARY.md' % page.relative_to(docs.parent)


def check(top):
    docs = top / 'docs'
    pages = sorted(docs.rglob('*.md')) + [top / name for name in ('README.md', 'CONTRIBUTING.md')]
    wrong = [line for page in pages if page.exists() for line in wrong_links(page, top)]
    return wrong + list(not_in_summary(docs))


def test():
    with tempfile.TemporaryDirectory() as place:
        top = pathlib.Path(place).resolve()
        (top / 'docs').mkdir()
        (top / 'docs/SUMMARY.md').write_text('- [A](a.md)\n')
        (top / 'docs/a.md').write_text(
            '# One `thing`, and *more*\n\n# Two\n\n# Two\n\n[ok](#one-thing-and-more) [ok](#two-1) [no](../README.md#top)\n'
            '[no](#two-2) [no](b.md) `[code](none.md)`\n```\n[code](none.md)\n# no heading\n```\n[no](#no-heading)\n')
        (top / 'docs/lost.md').write_text('no links\n')
        (top / 'README.md').write_text('# Top\n[out](https://example.org/x) [no](docs/a.md#three)\n')
        found = check(top)
        wanted = ['docs/a.md:7: ../README.md#top: leads out of docs/, and nowhere in the site',
                  'docs/a.md:8: #two-2: no such heading', 'docs/a.md:8: b.md: no such file',
                  'docs/a.md:13: #no-heading: no such heading', 'README.md:2: docs/a.md#three: no such heading',
                  'docs/lost.md is not in docs/SUMMARY.md']
        assert found == wanted, found
    print('ok')


if __name__ == '__main__':
    if sys.argv[1:] == ['--test']:
        test()
        sys.exit(0)
    WRONG = check(TOP)
    print('\n'.join(WRONG) or 'ok')
    sys.exit(1 if WRONG else 0)
