/** guard/retries, guard/tarpit and what guard/gate makes of them: who asks again too soon, and who is mostly refused. */
import t from 'tap';
import { Retries } from '../../src/guard/retries.ts';
import { Tarpit } from '../../src/guard/tarpit.ts';

t.test('an eighth of what is asked may be retried, if so configured; what is more is surplus', async (t) => {
  const retries = new Retries();
  const ask = (print: number, now: number) => retries.arrive('app', print, now, 0.125);
  for (let print = 0; print < 50; print++) retries.refused('app', ask(print, 0), 0);
  const again = Array.from({ length: 50 }, (_, print) => ask(print, 100));
  t.ok(again.every(({ isRetry }) => isRetry));
  t.equal(again.filter(({ isSurplus }) => !isSurplus).length, 7, 'one to begin with, and six that were saved up');
  t.notOk(ask(7, 31_000).isRetry, 'half a minute later it is a request as any other');
  t.notOk(ask(1000, 100).isRetry);
});

t.test('who gets little of what it asks is refused at once, in proportion, and only while that is so', async (t) => {
  const retries = new Retries();
  let now = 0;
  let print = 0;
  const share = (admittedOf: number, count = 1000) => {
    let throttled = 0;
    for (let n = 0; n < count; n++) {
      now += 10;
      const attempt = retries.arrive('app', ++print, now, 0.1);
      if (retries.isThrottled('app', now)) {
        throttled++;
        retries.refused('app', attempt, now);
      } else if (n % admittedOf === 0) retries.admitted('app', now);
      else retries.refused('app', attempt, now);
    }
    return throttled / count;
  };
  t.equal(share(1, 100), 0, 'all is admitted');
  t.equal(share(2, 100), 0, 'half of it is');
  const tenth = share(10, 4000);
  t.ok(tenth > 0.7 && tenth < 0.98, `${tenth} at a tenth`);
  share(1, 4000);
  const last = share(1, 500);
  t.ok(last < 0.01, `${last} when all is admitted again`);
  t.notOk(retries.isThrottled('other', now), 'others have nothing to do with it');
});

t.test('the tarpit keeps those who do not stop for between least and most, longer each time', async (t) => {
  const tarpit = new Tarpit(() => 1);
  tarpit.configure({ least: 250, most: 2000 });
  t.same(
    [0, 1, 2, 3].map((haste) => tarpit.delayOf(haste, 0)),
    [0, 0, 0, 0],
    'a first attempt and three retries are answered at once',
  );
  const late = [4, 5, 6, 7].map((haste) => tarpit.delayOf(haste, 0));
  t.same(late, [500, 1000, 2000, 2000]);
  tarpit.tick(0, 50);
  t.equal(tarpit.delayOf(1, 100), 500, 'while the event loop is late nobody is let be');
  t.equal(tarpit.delayOf(1, 1500), 0);
  const other = new Tarpit(() => 0);
  other.configure({ least: 250, most: 2000 });
  t.equal(other.delayOf(6, 0), 250);
  other.configure({ least: 0, most: 0 });
  t.equal(other.delayOf(6, 0), 0, 'off');
});

t.test('who is held is let go in time, once, and not at all when it has left', async (t) => {
  const tarpit = new Tarpit();
  const events: string[] = [];
  tarpit.tick(0, 0);
  tarpit.hold(250, 'retries', () => events.push('a'));
  tarpit.hold(2000, 'retries', () => events.push('b'));
  tarpit.hold(5000, 'reconnects', () => events.push('c'));
  const leave = tarpit.hold(300, 'reconnects', () => events.push('d'));
  leave();
  leave();
  t.equal(tarpit.held, 3);
  const at: Record<string, number> = {};
  for (let now = 0; now <= 6000; now += 10) {
    tarpit.tick(now, 0);
    for (const event of events.splice(0)) at[event] = now;
  }
  t.same(Object.keys(at), ['a', 'b', 'c']);
  t.ok(
    at.a! >= 250 && at.a! <= 290 && at.b! >= 2000 && at.b! <= 2040 && at.c! >= 5000 && at.c! <= 5040,
    JSON.stringify(at),
  );
  t.equal(tarpit.held, 0);
  t.same(tarpit.counts, { retries: 2, reconnects: 2, outage: 0 });
});

t.test('newcomers are held when too many of their kind leave on refusals, or the event loop is late', async (t) => {
  const tarpit = new Tarpit(() => 0);
  tarpit.configure({ least: 250, most: 2000 });
  t.notOk(tarpit.hasLeavers);
  for (let n = 0; n < 400; n++) tarpit.left('a', n);
  t.equal(tarpit.delayOfNewcomer('a', 400), 0);
  for (let n = 400; n < 501; n++) tarpit.left('a', n);
  t.equal(tarpit.delayOfNewcomer('a', 600), 250);
  t.equal(tarpit.delayOfNewcomer('b', 600), 0);
  tarpit.left('a', 1200);
  t.equal(tarpit.delayOfNewcomer('a', 1200), 0, 'another second');
  tarpit.tick(1300, 50);
  t.equal(tarpit.delayOfNewcomer('a', 1300), 250);
  t.equal(tarpit.delayOfNewcomer('b', 1300), 0, 'nobody of these has left');
  t.equal(tarpit.delayOfNewcomer('a', 4000), 0, 'too long ago');
  t.notOk(tarpit.hasLeavers);
});
