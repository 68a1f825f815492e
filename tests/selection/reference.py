"""Which keys a choice takes, said by a program that shares nothing with cachekeep and reads no RDB file.

    reference.py choices SOCKET RDB COMBINATIONS SEED    one JSON line for each choice: {"words": [...], "keys": N, "digest": "..."}
    reference.py held SOCKET                             what a server holds: {"keys": N, "digest": "..."}

It asks the server that the file was saved by. Type, expiry, serialised length and what a glob matches are the server's own answers
(TYPE, PEXPIRETIME, DUMP, KEYS); regular expressions are Python's; slots are by `binascii.crc_hqx`, the CRC that clusters use. Of the
file only the field `ctime` is read, which expiries are counted from.

A digest is the sum of a hash of each key: database, name, expiry, and the server's DEBUG DIGEST-VALUE. So two are equal where the same
keys hold the same, in whatever order they come.
"""
import binascii
import hashlib
import json
import random
import re
import socket
import sys

DBS = 2
BATCH = 1000
DIGEST_BITS = 128
TYPES = ["string", "list", "set", "zset", "hash", "stream"]


class Server:
    """A connection: commands go out many at a time, answers are read in their order."""

    def __init__(self, path):
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(path)
        self.answers = self.link.makefile("rb", 1 << 20)

    def ask_all(self, commands):
        out = bytearray()
        for words in commands:
            out += b"*%d\r\n" % len(words)
            for word in words:
                out += b"$%d\r\n%b\r\n" % (len(word), word)
        self.link.sendall(out)
        return [self.answer() for _ in commands]

    def ask(self, *words):
        return self.ask_all([words])[0]

    def answer(self):
        line = self.answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self.answers.read(int(rest) + 2)[:-2] if rest != b"-1" else None
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        raise RuntimeError(line)


def names_in(server):
    """Every name of the database that the connection is in, once."""
    cursor, names = b"0", set()
    while True:
        cursor, some = server.ask(b"SCAN", cursor, b"COUNT", b"5000")
        names.update(some)
        if cursor == b"0":
            return sorted(names)


def batches(names):
    for at in range(0, len(names), BATCH):
        yield names[at:at + BATCH]


def digest_of(db, name, expires, value):
    whole = b"%d %d %b %b" % (db, expires, value, name)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=DIGEST_BITS // 8).digest(), "little")


def shown(keys, total):
    return {"keys": keys, "digest": f"{total % (1 << DIGEST_BITS):032x}"}


def held(path):
    server, keys, total = Server(path), 0, 0
    for db in range(DBS):
        server.ask(b"SELECT", b"%d" % db)
        for names in batches(names_in(server)):
            answers = server.ask_all([[b"PEXPIRETIME", name] for name in names] + [[b"DEBUG", b"DIGEST-VALUE", *names]])
            keys += len(names)
            total += sum(digest_of(db, *of_key) for of_key in zip(names, answers, answers[-1]))
    print(json.dumps(shown(keys, total)))


def entry_bytes(name, dump, expires):
    """Bytes of an entry of an RDB file without compression: the payload without its footer, the name, and the expiry."""
    is_number = re.fullmatch(rb"-?[1-9][0-9]{0,10}|0", name) and len(name) <= 11
    number = int(name) if is_number else None
    if is_number and -128 <= number <= 127:
        name_bytes = 2
    elif is_number and -32768 <= number <= 32767:
        name_bytes = 3
    elif is_number and -2**31 <= number < 2**31:
        name_bytes = 5
    else:
        name_bytes = len(name) + (1 if len(name) < 64 else 2 if len(name) < 16384 else 5)
    return dump - 10 + name_bytes + (9 if expires >= 0 else 0)


def slot_of(name):
    opened = name.find(b"{")
    closed = name.find(b"}", opened + 1)
    if opened >= 0 and closed > opened + 1:
        name = name[opened + 1:closed]
    return binascii.crc_hqx(name, 0) % 16384


class Known:
    """What the source says of all its keys: lists in one order."""

    def __init__(self, server):
        self.dbs, self.names, self.kinds, self.expires, self.sizes, self.slots, self.digests = ([] for _ in range(7))
        for db in range(DBS):
            server.ask(b"SELECT", b"%d" % db)
            for names in batches(names_in(server)):
                count = len(names)
                answers = server.ask_all(
                    [[b"TYPE", name] for name in names]
                    + [[b"PEXPIRETIME", name] for name in names]
                    + [[b"DUMP", name] for name in names]
                    + [[b"DEBUG", b"DIGEST-VALUE", *names]])
                kinds, expires, dumps = (answers[part * count:(part + 1) * count] for part in range(3))
                self.dbs += [db] * count
                self.names += names
                self.kinds += [kind.decode() for kind in kinds]
                self.expires += expires
                self.sizes += [entry_bytes(*of_key) for of_key in zip(names, map(len, dumps), expires)]
                self.slots += map(slot_of, names)
                self.digests += [digest_of(db, *of_key) for of_key in zip(names, expires, answers[-1])]


def stem_of(name):
    """How a name begins, as people group them; such that it can be given on a command line."""
    text = name.decode("ascii", "replace")
    return re.match(r"[A-Za-z0-9:_]*", text).group()


def some_glob(dice, name):
    """A pattern made of a name: parts of it give way to what matches one byte, many, or none of it."""
    stem = stem_of(name)[:24]
    pieces = []
    for letter in stem:
        low, high = sorted((chr(dice.randint(33, 125)), letter))
        pieces.append(dice.choice([
            letter, letter, letter, letter, "?", "*", f"[{low}-{high}]", f"[{high}-{low}]", f"[^{letter}]", f"[x{letter}\\]]", "\\" + letter,
            f"[{letter}-]", f"[{letter}", "[]", "\\",
        ]) if dice.random() < 0.2 else letter)
    cut = dice.randint(0, len(pieces))
    body = "".join(pieces[:cut]) + "*"
    return body if dice.random() < 0.7 else "*" + body


def some_regex(dice, name):
    """A pattern that means the same to both implementations: of bytes of ASCII, without `.`, `\\d` and negated classes."""
    stem = stem_of(name)
    word = re.match(r"[a-z]*", stem).group()
    return dice.choice([
        "[%s]$" % "".join(dice.sample("0123456789", dice.randint(1, 5))),
        "^%s:[a-m]" % word,
        "(%s|%s)" % (word, dice.choice(["user", "page", "queue", "tags"])),
        "[0-9]{%d}" % dice.randint(2, 9),
        "^(?:[a-z]+:){%d}" % dice.randint(1, 2),
        "(?i)%s" % word.upper()[:3],
        "%s+%s*" % (dice.choice("aeiou"), dice.choice("nrst")),
        "^$|%d" % dice.randint(0, 99),
    ])


def choice(dice, known, server, written_ms, kinds):
    """Options, and the numbers of the keys that they take."""
    words, taken = [], range(len(known.names))
    for kind in kinds:
        of_key = dice.randrange(len(known.names))
        if kind == "db":
            wanted = {known.dbs[of_key]} | ({0, 1} if dice.random() < 0.2 else set())
            words += [word for db in sorted(wanted) for word in ("--db", str(db))]
            taken = [key for key in taken if known.dbs[key] in wanted]
        elif kind == "glob":
            glob = some_glob(dice, known.names[of_key])
            matched = []
            for db in range(DBS):
                server.ask(b"SELECT", b"%d" % db)
                matched.append(set(server.ask(b"KEYS", glob.encode())))
            words.append("--match=" + glob)
            taken = [key for key in taken if known.names[key] in matched[known.dbs[key]]]
        elif kind == "regex":
            text = some_regex(dice, known.names[of_key])
            found = re.compile(text.replace("$", r"\Z").encode()).search
            words.append("--regex=" + text)
            taken = [key for key in taken if found(known.names[key])]
        elif kind == "prefix":
            stem = stem_of(known.names[of_key])
            prefix = stem[:dice.randint(0, len(stem))] if dice.random() < 0.3 else stem[:stem.find(":") + 1 + dice.randint(0, 2)]
            words.append("--prefix=" + prefix)
            taken = [key for key in taken if known.names[key].startswith(prefix.encode())]
        elif kind == "type":
            wanted = {known.kinds[of_key]} | set(dice.sample(TYPES, dice.randint(0, 2)))
            words += [word for name in sorted(wanted) for word in ("--type", name)]
            taken = [key for key in taken if known.kinds[key] in wanted]
        elif kind == "slots":
            first, last = sorted((dice.randrange(16384), dice.randrange(16384)))
            if dice.random() < 0.1:
                first = last = known.slots[of_key]
            words += ["--slots", f"{first}-{last}"]
            taken = [key for key in taken if first <= known.slots[key] <= last]
        elif kind == "size":
            one, other = sorted((known.sizes[of_key], known.sizes[dice.randrange(len(known.names))]))
            least, most = dice.choice([(one, None), (None, one), (one, other)])
            words += ["--size", f"{'' if least is None else least}..{'' if most is None else most}"]
            taken = [key for key in taken
                     if (least is None or known.sizes[key] >= least) and (most is None or known.sizes[key] <= most)]
        elif kind == "ttl":
            seconds = dice.randint(60_000, 3_000_000)
            left = known.expires
            word, holds = dice.choice([
                ("none", lambda key: left[key] < 0),
                ("any", lambda key: left[key] >= 0),
                (f"{seconds}..", lambda key: left[key] >= 0 and left[key] - written_ms >= seconds * 1000),
                (f"..{seconds}", lambda key: left[key] >= 0 and left[key] - written_ms <= seconds * 1000),
            ])
            words += ["--ttl", word]
            taken = [key for key in taken if holds(key)]
    return words, taken


def written_ms_of(file):
    with open(file, "rb") as opened:
        head = opened.read(1000)
    at = head.index(b"ctime") + len(b"ctime")
    if head[at] != 0xc2:
        raise RuntimeError("no four bytes of a number")
    return int.from_bytes(head[at + 1:at + 5], "little") * 1000


def choices(path, file, combinations, seed):
    """Each selector alone, then random combinations."""
    server, written_ms, dice = Server(path), written_ms_of(file), random.Random(seed)
    known = Known(server)
    every = ["db", "glob", "regex", "prefix", "type", "slots", "size", "ttl"]
    asked = [[kind] for kind in every]
    asked += [[kind for kind in every if dice.random() < 0.35] for _ in range(combinations)]
    for kinds in asked:
        words, taken = choice(dice, known, server, written_ms, kinds)
        print(json.dumps({"words": words} | shown(len(taken), sum(known.digests[key] for key in taken))), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "held":
        held(sys.argv[2])
    else:
        choices(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
