#!/usr/bin/env python3
"""Reads a KeyDB snapshot file, checks all of it, and prints what it holds.

    tests/read_snapshot.py FILE

It follows docs/formats.md and shares no code with KeyDB, which shows that the page says enough. It needs Python 3.9 and, for zstd, one of: Python 3.14, the
package `zstandard` (pip), the program `zstd` (apt). Output: the header as one line of JSON, then for each section a line
`section RANGE GENERATION START LAST` and for each entry a line `FINGERPRINT EXPIRY`. Exit code 1: the file is not whole.
"""

import json
import shutil
import struct
import subprocess
import sys

MASK = (1 << 64) - 1


class Damaged(Exception):
    """The file is not what its format says."""


def check(condition, what):
    if not condition:
        raise Damaged(what)


# XXH3-64 (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), for inputs of 17 bytes and more: no frame is shorter.

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def fold(a, b):
    product = (a & MASK) * (b & MASK)
    return (product & MASK) ^ (product >> 64)


def avalanche(value):
    value &= MASK
    value ^= value >> 37
    value = value * 0x165667919E3779F9 & MASK
    return value ^ value >> 32


def mix16(data, at, secret_at, seed):
    low, high = struct.unpack_from("<2Q", data, at)
    secret_low, secret_high = struct.unpack_from("<2Q", SECRET, secret_at)
    return fold(low ^ (secret_low + seed & MASK), high ^ (secret_high - seed & MASK))


def xxh3_64(data, seed=0):
    size = len(data)
    check(size > 16, "a frame of 16 bytes or less")
    if size <= 128:
        total = size * P64_1
        for pair in range((size - 1) // 32 + 1):
            total += mix16(data, 16 * pair, 32 * pair, seed)
            total += mix16(data, size - 16 * pair - 16, 32 * pair + 16, seed)
        return avalanche(total)
    if size <= 240:
        total = size * P64_1 + sum(mix16(data, 16 * at, 16 * at, seed) for at in range(8))
        total = avalanche(total)
        total += sum(mix16(data, 16 * at, 16 * (at - 8) + 3, seed) for at in range(8, size // 16))
        return avalanche(total + mix16(data, size - 16, 119, seed))
    words = struct.unpack("<24Q", SECRET)
    signs = [(word + (seed if at % 2 == 0 else -seed)) & MASK for at, word in enumerate(words)]
    secret = struct.pack("<24Q", *signs)
    lanes = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def accumulate(at, secret_at):
        stripe = struct.unpack_from("<8Q", data, at)
        keys = struct.unpack_from("<8Q", secret, secret_at)
        for lane in range(8):
            keyed = stripe[lane] ^ keys[lane]
            lanes[lane ^ 1] += stripe[lane]
            lanes[lane] += (keyed & 0xFFFFFFFF) * (keyed >> 32)
        for lane in range(8):
            lanes[lane] &= MASK

    stripes = (size - 1) // 64
    for stripe in range(stripes):
        accumulate(64 * stripe, 8 * (stripe % 16))
        if stripe % 16 == 15:
            for lane, key in enumerate(struct.unpack_from("<8Q", secret, 128)):
                lanes[lane] = (lanes[lane] ^ lanes[lane] >> 47 ^ key) * P32_1 & MASK
    accumulate(size - 64, 121)
    total = size * P64_1
    for pair in range(4):
        low, high = struct.unpack_from("<2Q", secret, 11 + 16 * pair)
        total += fold(lanes[2 * pair] ^ low, lanes[2 * pair + 1] ^ high)
    return avalanche(total)


def unzstd(data, size):
    try:
        from compression import zstd

        return zstd.decompress(data)
    except ImportError:
        pass
    try:
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except ImportError:
        pass
    if shutil.which("zstd") is None:
        sys.exit("zstd is missing: pip install zstandard, or apt install zstd, or use Python 3.14")
    run = subprocess.run(["zstd", "-d", "-q", "-c"], input=data, stdout=subprocess.PIPE)
    check(run.returncode == 0, "a plane is not zstd")
    return run.stdout


class Reader:
    """Takes little-endian numbers off the front of bytes."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, size):
        check(self.at + size <= len(self.data), "it ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def end(self):
        check(self.at == len(self.data), "bytes lie behind the content")


def read_header(payload):
    fields = Reader(payload)
    check(fields.number(4) == 1, "format")
    check(fields.number(4) == 0, "required features")
    kind = {1: "full", 2: "delta", 3: "export"}.get(fields.number(1))
    check(kind is not None, "kind")
    check(fields.take(3) == bytes([1, 1, 1]), "codecs")
    check((fields.number(2), fields.number(2)) == (96, 32), "widths")
    header = {
        "kind": kind,
        "cluster_id": fields.take(16).hex(),
        "lineage": fields.number(8),
        "seed_digest": fields.number(8),
        "node": fields.number(4),
        "purge_before": fields.number(4),
        "disk_id": fields.take(16).hex(),
        "incarnation": fields.take(16).hex(),
        "lsn_from": fields.number(8),
        "lsn_to": fields.number(8),
        "created_ms": fields.number(8),
    }
    if kind == "export":
        header["seed"] = fields.number(8)
    header["parents"] = [fields.take(fields.number(4)).decode() for _ in range(fields.number(4))]
    fields.end()
    return header


def read_gaps(data, first, parameter, count):
    """The fingerprints: `first`, and what the bits of `data` say of those behind it."""
    at = 0

    def bits(size):
        nonlocal at
        start, shift = divmod(at, 8)
        at += size
        check(at <= 8 * len(data), "the gaps end early")
        word = int.from_bytes(data[start : start + (shift + size + 7) // 8], "little")
        return word >> shift & (1 << size) - 1

    fingerprints = [first]
    for _ in range(count - 1):
        low = bits(parameter)
        high = 0
        while bits(1):
            high += 1
        fingerprints.append(fingerprints[-1] + (high << parameter) + low + 1)
    check((at + 7) // 8 == len(data), "bytes lie behind the gaps")
    return fingerprints


def read_block(payload):
    fields = Reader(payload)
    count = fields.number(4)
    first = int.from_bytes(fields.take(12), "big")
    parameter = fields.number(1)
    gaps = fields.take(fields.number(4))
    expiries = [fields.number(4)] * count
    for plane in range(fields.number(1)):
        codec = fields.number(1)
        data = fields.take(fields.number(4))
        check(codec in (0, 1), "a plane's codec")
        if codec == 1:
            data = unzstd(data, count)
        check(len(data) == count, "a plane is not as long as the block has entries")
        expiries = [expiry + (byte << 8 * plane) for expiry, byte in zip(expiries, data)]
    fields.end()
    check(all(0 < expiry < 1 << 32 for expiry in expiries), "an expiry is 0 or too late")
    return list(zip(read_gaps(gaps, first, parameter, count), expiries))


def read_frame(file, salt):
    """Tag, payload and checksum."""
    start = file.at
    tag = file.take(4)
    payload = file.take(file.number(4))
    content = file.data[start : file.at]
    checksum = file.number(8)
    check(xxh3_64(content, salt) == checksum, f"the checksum of the frame at {start}")
    return tag, payload, checksum


def read_file(data):
    """The header, and the sections with their entries."""
    file = Reader(data)
    check(file.take(8) == b"KEYDBSNP", "the first bytes")
    tag, header_payload, salt = read_frame(file, 0)
    check(tag == b"HEAD", "no header")
    header = read_header(header_payload)
    sections, blocks = [], []
    while True:
        offset = file.at
        if file.data[offset : offset + 4] == b"FOOT":
            break
        tag, payload, _ = read_frame(file, salt)
        if tag == b"SECT":
            range_id, generation, start, last = struct.unpack("<4Q", payload)
            section = {"range": range_id, "generation": generation, "start": start, "last": last}
            sections.append(dict(section, offset=offset, blocks=0, entries=[]))
            continue
        check(tag == b"BLCK" and sections, "a frame that may not be here")
        section, entries = sections[-1], read_block(payload)
        before = section["entries"][-1][0] if section["entries"] else -1
        check(before < entries[0][0], "blocks out of order")
        section["entries"] += entries
        section["blocks"] += 1
        low, high = section["entries"][0][0] >> 32, section["entries"][-1][0] >> 32
        check(section["start"] <= low and high <= section["last"], "an entry out of bounds")
        blocks.append((entries[0][0], len(entries), offset))

    footer_at = file.at
    _, footer, _ = read_frame(file, 0)
    footer_bytes = file.at - footer_at
    check(file.number(8) == footer_bytes, "the footer's length")
    check(file.take(8) == b"KEYDBEND", "the last bytes")
    file.end()

    fields = Reader(footer)
    check(fields.take(fields.number(4)) == header_payload, "the footer's header")
    check(fields.number(4) == len(sections), "the number of sections")
    check(fields.number(4) == len(blocks), "the number of blocks")
    check(fields.number(8) == len(data), "the file's size")
    check(fields.number(8) == sum(len(section["entries"]) for section in sections), "the entries")
    for section in sections:
        named = [fields.number(8) for _ in range(7)]
        names = ("range", "generation", "start", "last", "offset")
        read = [section[name] for name in names] + [len(section["entries"]), section["blocks"]]
        check(named == read, "a section in the footer")
    for block in blocks:
        named = (int.from_bytes(fields.take(12), "big"), fields.number(4), fields.number(8))
        check(named == block, "a block in the footer")
    fields.end()
    return header, sections


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    try:
        header, sections = read_file(data)
    except Damaged as error:
        sys.exit(f"{sys.argv[1]} is not a whole snapshot file: {error}")
    print(json.dumps(header))
    for section in sections:
        names = ("range", "generation", "start", "last")
        print("section", *(section[name] for name in names))
        for fingerprint, expiry in section["entries"]:
            print(f"{fingerprint:024x} {expiry}")


if __name__ == "__main__":
    main()
