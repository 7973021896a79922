"""How processes find each other, and what keeps them from it."""

from __future__ import annotations

import json
import platform
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import pytest

from gnpcli.devices.processes import meeting
from gnpcli.devices.processes.channel import LONGEST_HELLO, Channel
from gnpcli.devices.processes.layout import Layout, split_address
from gnpcli.devices.processes.meeting import HEARD, MeetingError
from tests.launch import wait_until
from tests.meeting import layouts, meet


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "20")


def test_a_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "1")
    first, second, _ = layouts(3)
    told = meet(first, second)
    assert "process 2 of 3 did not come to 127.0.0.1" in str(told[0])
    assert isinstance(told[1], MeetingError)


def test_a_coordinator_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "0.5")
    (told,) = meet(layouts(2)[1])
    assert "process 1 of 2 cannot reach process 0 at 127.0.0.1" in str(told)
    assert "Connection refused" in str(told)


def test_what_listens_there_and_is_no_gnp_is_told_from_process_0(monkeypatch):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "1")
    own = layouts(2)[1]
    with socket.create_server(("127.0.0.1", split_address(str(own.coordinator))[1])) as server:
        server.settimeout(10)
        ended = threading.Event()

        def answer() -> None:
            with suppress(OSError):  # at the end
                while not ended.is_set():
                    connection, _ = server.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()

        other = threading.Thread(target=answer, daemon=True)
        other.start()
        (told,) = meet(own)
        ended.set()
    assert "something else listens there" in str(told)


def test_strangers_at_the_door_keep_nobody_out(soon):
    first, second = layouts(2)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(meet, first)
        with knock(first) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(1) == b""
        assert meet(second)[0][2] == 7
        assert set(told.result()[0][1]) == {1}


who = meeting.who


def test_an_address_that_no_other_node_can_reach_is_refused(soon):
    first = replace(layouts(2)[0], nodes=2)
    (told,) = meet(first)
    assert "127.0.0.1" in str(told)
    assert "which no other node can reach" in str(told)


def test_a_port_that_is_taken_is_named(soon):
    first = layouts(2)[0]
    with socket.create_server(("127.0.0.1", split_address(str(first.coordinator))[1])):
        (told,) = meet(first)
    assert "process 0 cannot listen at 127.0.0.1" in str(told)
    assert "Address already in use" in str(told)


def place_of(layout: Layout) -> tuple[str, int]:
    return split_address(str(layout.coordinator))


def knock(layout: Layout) -> socket.socket:
    """Connect to process 0, which may not listen yet."""
    found: list[socket.socket] = []

    def connect() -> bool:
        with suppress(OSError):
            found.append(socket.create_connection(place_of(layout), timeout=30))
        return bool(found)

    wait_until(connect, 20)
    return found[0]


def says(layout: Layout, **more: object) -> socket.socket:
    """Come as a process, and return the connection once process 0 has heard it."""
    connection = knock(layout)
    connection.sendall(json.dumps({**who(layout), **more}).encode() + b"\n")
    return connection


def test_who_ends_before_all_have_come_is_missed_at_once(soon):
    first, second, third, _ = layouts(4)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(meet, first)
        with says(second) as other, says(third) as ended:
            answers = other.makefile("rb")
            assert json.loads(answers.readline()) == HEARD
            assert json.loads(ended.makefile("rb").readline()) == HEARD
            ended.shutdown(socket.SHUT_RDWR)  # as the end of its process does
            (error,) = told.result()
            assert json.loads(answers.readline()) == {"refused": str(error)}
    assert f"process 2 on {platform.node()} has ended before all had come" in str(error)


def test_a_process_0_that_ends_before_all_have_come_is_missed_at_once(soon):
    own = layouts(2)[1]
    with socket.create_server(place_of(own)) as server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(meet, own)
        server.settimeout(20)
        connection, _ = server.accept()
        channel = Channel(connection)
        said = channel.receive(20)
        assert said is not None
        assert said["index"] == 1
        channel.send(HEARD)
        channel.close()
        (error,) = told.result()
    assert f"process 0 at {own.coordinator} has ended before all had come" in str(error)


def test_strangers_who_say_nothing_keep_nobody_waiting(soon):
    """Each of them would have 10 s to say who it is: together more than there is for all."""
    first, second = layouts(2)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        told = pool.submit(meet, first)
        strangers = [stack.enter_context(knock(first)) for _ in range(5)]
        strangers[1].sendall(b'{"hello"')
        strangers[2].sendall(b"x" * LONGEST_HELLO)
        assert strangers[2].recv(1) == b""  # no process has so much to say
        assert meet(second)[0][2] == 7
        assert set(told.result()[0][1]) == {1}
        assert strangers[0].recv(1) == b""
        assert strangers[1].recv(1) == b""


@pytest.mark.parametrize(
    "said", [b"[" * 60_000, b"9" * 5000, b'"', b"\xff\xfe", b"{}", b'{"hello":[1]}']
)
def test_what_no_process_says_ends_nothing(soon, said):
    first, second = layouts(2)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(meet, first)
        with knock(first) as stranger:
            stranger.sendall(said + b"\n")
            assert stranger.recv(1) == b""
        assert meet(second)[0][2] == 7
        assert set(told.result()[0][1]) == {1}


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "a..b"])
def test_a_host_that_has_no_address_is_named(host):
    (told,) = meet(Layout(2, 0, f"{host}:4000"))
    assert isinstance(told, MeetingError)
    assert host[:60] in str(told)


def test_processes_of_another_jax_are_refused(soon, monkeypatch):
    first, second = layouts(2)
    monkeypatch.setattr(meeting, "who", lambda layout: {**who(layout), "version": "0.1 with jax 2"})
    told = meet(first, second)
    assert [str(found) for found in told] == [str(told[0])] * 2
    assert "is gnp 0.1 with jax 2, process 0" in str(told[0])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"index": 1}, "two processes say that they are process 1: on "),
        ({"index": 0}, "two processes say that they are process 0: on "),
        ({"index": 3}, "says that it is process 3 of 3"),
        ({"index": None}, "says that it is process None of 3"),
        ({"count": 4}, "counts 4 processes, process 0 3"),
        ({"version": "0.0"}, "is gnp 0.0, process 0 "),
    ],
)
def test_a_process_that_does_not_fit_is_refused_and_all_say_so(soon, more, said):
    first, second, third = layouts(3)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(meet, first)
        with says(second) as right:
            answers = right.makefile("rb")
            assert json.loads(answers.readline()) == HEARD
            with says(third, **more) as odd:
                refused = json.loads(odd.makefile("rb").readline())
            assert json.loads(answers.readline()) == refused
        (error,) = told.result()
    assert refused == {"refused": str(error)}
    assert said in str(error)


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_processes_meet_over_ipv6(soon):
    first, second = layouts(2, "[::1]")
    told = meet(first, second)
    assert (told[0][0], told[1][1]) == ("::1", "::1")
    # JAX's own service listens on both families there, too.
    first, second = layouts(2)
    port = place_of(first)[1]
    told = meet(replace(first, bind=f"[::]:{port}"), second)
    assert (told[0][0], told[1][1]) == ("::", "127.0.0.1")


def named(monkeypatch: pytest.MonkeyPatch, host: str, *addresses: str) -> None:
    """Give a host addresses."""
    ask = socket.getaddrinfo

    def answer(name: str, *more: Any, **options: Any) -> list[Any]:
        places = addresses if name == host else (name,)
        return [found for place in places for found in ask(place, *more, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def test_a_process_0_of_several_addresses_is_reached_at_the_one_where_it_listens(soon, monkeypatch):
    named(monkeypatch, "a.example", "127.0.0.3", "127.0.0.1")
    first, second = layouts(2, "a.example")
    told = meet(replace(first, bind=f"127.0.0.1:{place_of(first)[1]}"), second)
    assert told[1][1] == "127.0.0.1"


def test_of_several_machines_addresses_are_taken_that_others_reach(monkeypatch):
    named(monkeypatch, "a.example", "127.0.1.1", "10.0.0.1")
    layout = layouts(2, "a.example")[0]
    assert meeting.addresses("a.example", replace(layout, nodes=2)) == ["10.0.0.1"]
    assert meeting.addresses("a.example", layout) == ["127.0.1.1", "10.0.0.1"]


def test_a_name_that_only_its_own_machine_can_reach_is_told(monkeypatch):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "0.1")
    named(monkeypatch, "a.example", "127.0.0.1")
    (told,) = meet(layouts(2, "a.example")[0])
    assert "(a.example is 127.0.0.1 here, which no other machine can reach)" in str(told)


def test_a_port_is_kept_for_the_service_of_jax():
    with meeting.free_port("127.0.0.1") as port:
        if not hasattr(socket, "SO_REUSEPORT"):
            return
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=20):
                pass


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such limit")
def test_a_machine_that_vanishes_is_missed_after_a_minute_also_while_it_owes_an_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        channel = Channel(connection := socket.create_connection(server.getsockname()))
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        channel.close()
