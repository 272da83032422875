"""The server side of the Network Block Device protocol (fixed newstyle, simple replies): how QEMU reaches a disk of ours."""
import socket
import struct
import threading

MAGIC_OPTION_REPLY = 0x3e889045565a9
MAGIC_REQUEST = 0x25609513
MAGIC_REPLY = 0x67446698
FLAGS = 1 | 4 | 8                               # has flags, takes flushes, takes forced unit access
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
REQUEST = struct.Struct('>IHHQQI')
EIO, EINVAL = 5, 22


def serve(disk, path):
    """Serves `disk` on the Unix socket `path`, for as long as this process lives."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(4)
    threading.Thread(target=_accept, args=(disk, server), daemon=True).start()


def _accept(disk, server):
    while True:
        client, _ = server.accept()
        threading.Thread(target=_client, args=(disk, client), daemon=True).start()


def _client(disk, client):
    try:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            client.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        if _handshake(disk, client):
            _requests(disk, client)
    except (EOFError, OSError):
        pass
    finally:
        client.close()


def _receive(client, length):
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = client.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def _handshake(disk, client):
    client.sendall(b'NBDMAGICIHAVEOPT' + struct.pack('>H', 3))
    no_zeroes = struct.unpack('>I', _receive(client, 4))[0] & 2
    info = struct.pack('>QH', disk.size, FLAGS)

    def reply(option, kind, data=b''):
        client.sendall(struct.pack('>QIII', MAGIC_OPTION_REPLY, option, kind, len(data)) + data)
    while True:
        _, option, length = struct.unpack('>QII', _receive(client, 16))
        _receive(client, length)
        if option == 1:                                         # EXPORT_NAME
            client.sendall(info + (b'' if no_zeroes else bytes(124)))
            return True
        if option in (6, 7):                                    # INFO, GO
            reply(option, 3, struct.pack('>H', 0) + info)
            reply(option, 3, struct.pack('>HIII', 3, 512, 4096, 32 << 20))
            reply(option, 1)
            if option == 7:
                return True
        elif option == 2:                                       # ABORT
            reply(option, 1)
            return False
        else:
            reply(option, 0x80000001)                           # unsupported


def _requests(disk, client):
    while True:
        magic, flags, kind, handle, offset, length = REQUEST.unpack(_receive(client, REQUEST.size))
        if magic != MAGIC_REQUEST:
            raise EOFError
        data = _receive(client, length) if kind == WRITE else None
        if kind == DISCONNECT:
            return
        answer = disk.request(kind, offset, length, data, bool(flags & 1))
        if answer is None:                                      # the power is off: nothing is answered any more
            return
        error, out = answer
        client.sendall(struct.pack('>IIQ', MAGIC_REPLY, error, handle))
        if out and not error:
            client.sendall(out)
