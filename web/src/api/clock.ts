/**
 * The service's clock, as far as a page can know it: every answer's `Date` header moves it, and between answers it is
 * carried on by the browser's monotonic clock. So a client whose own clock is wrong by an hour still counts down rightly.
 */
let offset: number | null = null // milliseconds to add to performance.now()

/** Notes the time of an answer; `exact` is for a member such as `server_time`, which knows fractions of a second. */
export function noteServerTime(text: string | null, exact = false): void {
  const time = Date.parse(text ?? '')
  if (Number.isNaN(time)) return
  // A Date header is cut to whole seconds: in the middle it is wrong by half a second at most.
  const measured = time + (exact ? 0 : 500) - performance.now()
  if (exact || offset === null || Math.abs(measured - offset) > 1500) offset = measured
}

/** Milliseconds since 1970 by the service's clock. */
export function serverNow(): number {
  return offset === null ? Date.now() : offset + performance.now()
}
