"""Tokens on their way: joined for a slow listener, apart for each, gone if nobody listens."""

from __future__ import annotations

import asyncio

from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from services.core.queue.token_stream import TokenListener, TokenStream
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2


def piece(start: int, *tokens: int, sequence: int = 0) -> sampling_pb2.SampledPiece:
    logprobs = [-float(token) for token in tokens]
    return sampling_pb2.SampledPiece(sequence_index=sequence, start=start, tokens=tokens, logprobs=logprobs)


def published(operation: str, *pieces: sampling_pb2.SampledPiece) -> job_pb2.StreamedTokens:
    return job_pb2.StreamedTokens(operations=[job_pb2.OperationTokens(operation=operation, pieces=pieces)])


async def test_pieces_join_while_nobody_fetches_them() -> None:
    listener = TokenListener()
    listener.add([piece(0, 1, 2), piece(0, 9, sequence=1)])
    last = piece(2, 3)
    last.stop_reason = sampling_pb2.STOP_REASON_STOP
    listener.add([last])
    first, second = await listener.next_pieces()
    assert (first.start, list(first.tokens), list(first.logprobs)) == (0, [1, 2, 3], [-1, -2, -3])
    assert first.stop_reason == sampling_pb2.STOP_REASON_STOP
    assert list(second.tokens) == [9]
    assert list(last.tokens) == [3], "what others listen to is left alone"
    listener.add([piece(3, 4)])
    (third,) = await listener.next_pieces()
    assert (third.start, list(third.tokens)) == (3, [4])


async def test_a_gap_is_never_closed_by_joining() -> None:
    listener = TokenListener()
    listener.add([piece(0, 1)])
    listener.add([piece(2, 3)])
    (joined,) = await listener.next_pieces()
    assert list(joined.tokens) == [1]


async def test_who_comes_back_gets_what_it_has_not_received() -> None:
    listener = TokenListener(received=[3, 0])
    listener.add([piece(5, 6)])
    listener.add([piece(0, 1, 2, 3, 4, 5, 6), piece(0, 7, sequence=1)])
    listener.add([piece(4, 5, 6), piece(6, 8)])
    first, second = await listener.next_pieces()
    assert (first.start, list(first.tokens), list(first.logprobs)) == (3, [4, 5, 6, 8], [-4, -5, -6, -8])
    assert (second.start, list(second.tokens)) == (0, [7])


async def test_published_tokens_reach_all_listeners_of_their_operation(connection: RedisConnection) -> None:
    stream = TokenStream(connection)
    reading = asyncio.create_task(stream.run())

    async def is_read() -> None:
        while not (await connection.commands.pubsub_numsub(keyspace.TOKENS))[0][1]:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(is_read(), 60)
    with stream.listen("a") as one, stream.listen("a") as two, stream.listen("b") as other:
        assert stream.operations == {"a", "b"}
        await stream.publish(published("nobody", piece(0, 5)))
        await stream.publish(published("a", piece(0, 1)))
        await stream.publish(published("b", piece(0, 7)))
        for listener, token in ((one, 1), (two, 1), (other, 7)):
            (got,) = await asyncio.wait_for(listener.next_pieces(), 60)
            assert list(got.tokens) == [token]
    assert not stream.operations
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
