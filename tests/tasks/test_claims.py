"""One worker has an acquisition; the claim of a dead one is taken over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cmseg_core.errors import StoreRefusal
from cmseg_core.storage.store import Store
from tasks import claims
from tasks.claims import Owner, claim, is_claimed


def put_owner(store: Store, **changed: object) -> None:
    owner = Owner.this().model_copy(update=changed)
    store.put("work/claims/cells/0001/owner.json", owner.model_dump_json().encode())


def test_one_of_many_gets_it(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = [mine for mine in pool.map(lambda _: claim(store, "cells"), range(8)) if mine]
    assert len(got) == 1 and got[0].attempt == 1
    assert is_claimed(store, "cells") and not is_claimed(store, "others")
    with got[0].kept():
        assert claim(store, "cells") is None
    assert not is_claimed(store, "cells")
    assert store.list("work/claims") == []


@pytest.mark.parametrize("told", [False, ConnectionError("reset")])
def test_the_winner_whose_answer_was_lost_has_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, told: bool | Exception
) -> None:
    genuine = Store.put_if_absent

    def lost(self: Store, key: str, data: bytes) -> bool:
        genuine(self, key, data)
        if isinstance(told, Exception):
            raise told
        return told

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", lost)
        mine = claim(store, "cells")
        assert mine is not None
        assert claim(store, "cells") is None
    with mine.kept():
        pass
    assert not is_claimed(store, "cells")


def test_a_claim_that_never_reached_the_store_holds_nothing_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_asked: object) -> bool:
        raise ConnectionError("the service does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", fails)
        with pytest.raises(ConnectionError):
            claim(store, "cells")
    assert claim(store, "cells") is not None


def test_a_claim_that_could_not_be_deleted_is_over_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_asked: object) -> None:
        raise ConnectionError("the service does not answer")

    mine = claim(store, "cells")
    assert mine is not None
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", fails)
        with mine.kept():
            pass
    assert store.exists("work/claims/cells/0001/owner.json")
    assert not is_claimed(store, "cells")
    again = claim(store, "cells")
    assert again is not None and again.attempt == 2


@pytest.mark.parametrize("changed", [{"began": 1.0}, {"pid": 2**22 + 1}])
def test_the_claim_of_a_process_that_is_gone_is_taken_over(store: Store, changed: dict[str, object]) -> None:
    put_owner(store, **changed)
    assert not is_claimed(store, "cells")
    mine = claim(store, "cells")
    assert mine is not None and mine.attempt == 2
    with mine.kept():
        pass
    assert store.list("work/claims") == []


def test_another_machine_is_watched_for_a_sign_of_life(store: Store) -> None:
    put_owner(store, host="elsewhere")
    assert is_claimed(store, "cells")
    assert claim(store, "cells") is None
    sign = threading.Timer(0.3, store.put, ("work/claims/cells/0001/beat.json", b'{"beat": 1}'))
    sign.start()
    assert claim(store, "cells", patience=20.0) is None
    sign.join()
    mine = claim(store, "cells", patience=0.5)
    assert mine is not None and mine.attempt == 2


def test_a_holder_gives_signs_of_life(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    mine = claim(store, "cells")
    assert mine is not None
    with mine.kept():
        deadline = threading.Event()
        while not store.exists("work/claims/cells/0001/beat.json"):
            assert not deadline.wait(0.05)
    assert store.list("work/claims") == []


def test_a_key_that_is_refused_meanwhile_ends_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object) -> None:
        asked.append(1)
        raise StoreRefusal("s3://cmseg/work", "access was refused", "check the key")

    asked: list[int] = []
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    mine = claim(store, "cells")
    assert mine is not None
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", refused)
        patch.setattr(Store, "delete", refused)
        with mine.kept():
            while len(asked) < 3:
                threading.Event().wait(0.02)
    assert len(asked) >= 4, "it goes on to give signs of life, and lets go"


def test_letting_go_leaves_a_successor_alone(store: Store) -> None:
    first = claim(store, "cells")
    assert first is not None
    store.put("work/claims/cells/0002/owner.json", Owner.this().model_dump_json().encode())
    with first.kept():
        pass
    assert store.list("work/claims") == ["work/claims/cells/0002/owner.json"]
