import gc, socket, types
from tests.suites.test_bus import _arrived_around_an_outage
async def test_x(kafka_broker, tmp_path, caplog):
    assert await _arrived_around_an_outage(kafka_broker, tmp_path)==150
    caplog.clear(); gc.collect()
    ss=[o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno()>=0 and 'laddr' in repr(o) and "0.0.0.0" in repr(o)]
    print(len(ss))
    def chain(o, depth=0, seen=set()):
        if depth>9 or id(o) in seen: return
        seen.add(id(o))
        for r in gc.get_referrers(o):
            if r is ss or isinstance(r, types.FrameType) and r.f_code.co_name in('chain','test_x','<listcomp>'): continue
            if isinstance(r,list) and o in ss and len(r)==len(ss): continue
            print('  '*depth, type(r).__name__, repr(r)[:150]); chain(r, depth+1)
            break
    for s in ss[:2]: chain(s)
    import threading; print(threading.enumerate())
