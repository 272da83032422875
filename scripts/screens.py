#!/usr/bin/env python3
"""Draws what a command prints on a terminal as an SVG, for the documents.

    scripts/screens.py OUT.svg COMMAND...       runs it in a terminal of 100 columns
    scripts/screens.py --for SECONDS OUT.svg COMMAND...
                                                a view that goes on (`status --watch`): what is on
                                                the screen after so long
    scripts/screens.py --test                   checks this script itself

Only what ferryfs uses of a terminal is understood: lines, clearing, moving the cursor to the top or
up, bold and colours.
"""
import html
import os
import pty
import re
import select
import signal
import sys
import time

COLUMNS, LINES = 100, 40
WIDE, HIGH, MARGIN = 8.4, 19, 16
COLOURS = {31: '#e06c75', 32: '#98c379', 33: '#e5c07b', 34: '#61afef', 35: '#c678dd', 36: '#56b6c2'}
TEXT, DIM, GROUND = '#d7dae0', '#8b919c', '#21252b'
TOKEN = re.compile(r'\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()].|\x1b.|(\r)|(\n)|([^\x1b\r\n]+)')


def run(command, seconds):
    """What a command writes to its terminal, to its end or for so long."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM='xterm-256color', COLUMNS=str(COLUMNS), LINES=str(LINES))
        os.execvp(command[0], command)
    import fcntl
    import struct
    import termios
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', LINES, COLUMNS, 0, 0))
    deadline = time.monotonic() + (seconds or 60)
    said = b''
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return said.decode(errors='replace')


def screen(said):
    """The lines on the screen, each a list of (character, style)."""
    rows, row, column, style = [[]], 0, 0, ()
    for token in TOKEN.finditer(said):
        arguments, letter, back, down, text = token.groups()
        if back:
            column = 0
        elif down:
            row += 1
        elif text:
            for character in text:
                while len(rows) <= row:
                    rows.append([])
                line = rows[row]
                line.extend([(' ', ())] * (column + 1 - len(line)))
                line[column] = (character, style)
                column += 1
        elif letter:
            numbers = [int(number) for number in re.findall(r'\d+', arguments)] or [0]
            if letter == 'm':
                style = styled(style, numbers)
            elif letter == 'H':
                row, column = max(numbers[0] - 1, 0), (numbers[1] - 1 if len(numbers) > 1 else 0)
            elif letter == 'A':
                row = max(0, row - max(numbers[0], 1))
            elif letter == 'J':
                rows = [[]] if numbers[0] in (2, 3) else rows[:row] + [rows[row][:column] if row < len(rows) else []]
            elif letter == 'K' and row < len(rows):
                rows[row] = rows[row][:column]
        while len(rows) <= row:
            rows.append([])
    while rows and not rows[-1]:
        rows.pop()
    return rows


def styled(style, numbers):
    for number in numbers:
        style = () if number == 0 else style + (number,)
    return style


def attributes(style):
    colour = next((COLOURS[number] for number in reversed(style) if number in COLOURS), TEXT)
    if 2 in style:
        colour = DIM
    return 'fill="%s"%s' % (colour, ' font-weight="bold"' if 1 in style else '')


def svg(rows, title):
    wide = MARGIN * 2 + WIDE * max([len(row) for row in rows] + [40])
    high = MARGIN * 2 + HIGH * len(rows)
    lines = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="%s">'
             % (wide, high, wide, html.escape(title, quote=True)),
             '<rect width="100%%" height="100%%" rx="8" fill="%s"/>' % GROUND,
             '<g font-family="ui-monospace, DejaVu Sans Mono, monospace" font-size="14" style="white-space: pre" xml:space="preserve">']
    for number, row in enumerate(rows):
        at = 0
        while at < len(row):
            end = at
            while end < len(row) and row[end][1] == row[at][1]:
                end += 1
            piece = ''.join(character for character, _ in row[at:end])
            if piece.strip():
                lines.append('<text x="%.1f" y="%d" textLength="%.1f" %s>%s</text>' % (
                    MARGIN + at * WIDE, MARGIN + HIGH * number + 14, len(piece) * WIDE,
                    attributes(row[at][1]), html.escape(piece)))
            at = end
    return '\n'.join(lines + ['</g>', '</svg>', ''])


def test():
    text = [''.join(character for character, _ in row) for row in screen('one\r\n\x1b[1mtwo\x1b[0m\r\nthree')]
    assert text == ['one', 'two', 'three'], text
    assert [''.join(c for c, _ in row) for row in screen('old\r\nold\x1b[2J\x1b[Hnew')] == ['new']
    assert [''.join(c for c, _ in row) for row in screen('12345\r\x1b[Kab')] == ['ab']
    assert 'font-weight="bold"' in svg(screen('\x1b[1mb\x1b[0m<'), 't') and '&lt;' in svg(screen('<'), 't')
    print('ok')


def main():
    words = sys.argv[1:]
    if words == ['--test']:
        return test()
    seconds = None
    if words[:1] == ['--for']:
        seconds, words = float(words[1]), words[2:]
    if len(words) < 2:
        sys.exit(__doc__)
    out, command = words[0], words[1:]
    title = ' '.join([os.path.basename(command[0])] + command[1:])
    rows = [[(character, (32,)) for character in '$ '] + [(character, (1,)) for character in title], []]
    with open(out, 'w') as file:
        file.write(svg(rows + screen(run(command, seconds)), title))


if __name__ == '__main__':
    main()
