"""What the guest is booted for: python3 -m trial.inside SCENARIO key=value ..."""
import sys


def main():
    scenario, *rest = sys.argv[1:]
    options = dict(word.split('=', 1) for word in rest)
    name, seed, repair = options['name'], int(options['seed']), options.get('repair') != 'no'
    if scenario == 'yanks':
        from . import yanks
        keep_clean = options.get('keep_clean') == 'yes'
        yanks.main(name, seed, range(int(options['first']), int(options['last'])), repair, keep_clean)
    elif scenario == 'day':
        from . import day, lab
        day.main(seed, lab.SHARE)
    elif scenario == 'cuts':
        from . import cuts
        cuts.main(name, seed, int(options['round']), options.get('end') == 'yes', repair)
    elif scenario == 'points':
        from . import points
        points.main(name, seed, int(options['most']), repair)
    elif scenario == 'outages':
        from . import outages
        outages.main(name, seed, int(options['rounds']), options['kind'])


if __name__ == '__main__':
    main()
