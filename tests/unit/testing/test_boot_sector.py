from __future__ import annotations

from qmpkit.testing.guests.boot_sector import (
    BANNER,
    COUNTER_ADDRESS,
    FIRMWARE_SIZE,
    boot_disk,
    boot_sector,
    firmware_image,
)


def test_a_boot_sector_is_512_bytes_with_the_signature() -> None:
    sector = boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert BANNER.encode() + b"\r\n\0" in sector


def test_the_disk_begins_with_the_sector_and_holds_a_cylinder() -> None:
    disk = boot_disk()
    assert disk[:512] == boot_sector()
    assert len(disk) >= 16 * 63 * 512


def test_the_reset_vector_jumps_to_the_code() -> None:
    image = firmware_image()
    assert len(image) == FIRMWARE_SIZE == 65536
    assert image[0xFFF0] == 0xE9  # jmp near
    distance = int.from_bytes(image[0xFFF1:0xFFF3], "little", signed=True)
    entry = 0xFFF3 + distance
    code = boot_sector()[:510].rstrip(b"\0")
    assert image[entry : entry + len(code)] == code


def test_the_code_counts_at_the_documented_address() -> None:
    low = b"\x66\x83\x06" + COUNTER_ADDRESS.to_bytes(2, "little") + b"\x01"
    high = b"\x66\x83\x16" + (COUNTER_ADDRESS + 4).to_bytes(2, "little") + b"\x00"
    assert boot_sector().count(low + high) == 1


def test_the_code_finds_its_banner_from_where_it_is() -> None:
    sector = boot_sector()
    here = sector.index(b"\xe8\x00\x00") + 3  # call the next instruction
    assert sector[here : here + 3] == b"\x5e\x81\xc6"  # pop si; add si, …
    distance = int.from_bytes(sector[here + 3 : here + 5], "little")
    assert sector[here + distance :].startswith(BANNER.encode())


def test_every_short_jump_lands_on_an_instruction_of_the_loop() -> None:
    sector = boot_sector()
    count = sector.index(b"\x66\x83\x06")
    jump = sector.index(b"\x75", count)  # jnz count, after the test
    landing = jump + 2 + int.from_bytes(sector[jump + 1 : jump + 2], "little", signed=True)
    assert landing == count
