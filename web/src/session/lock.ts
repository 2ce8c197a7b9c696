/**
 * One at a time across the tabs of a browser. A refresh token may be used once; two tabs that used the same one would
 * look like a thief and end the session. Browsers offer the Web Locks API to secure pages only (HTTPS, localhost), so
 * there is a lease in localStorage for the rest: weaker, since two tabs may read it in the same instant, but it is
 * looked at twice.
 */
const LEASE_MS = 10_000 // longer than a refresh takes, shorter than patience

export async function alone<T>(name: string, work: () => Promise<T>): Promise<T> {
  if (navigator.locks) return navigator.locks.request(name, work)
  return withLease(name, work)
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

async function withLease<T>(name: string, work: () => Promise<T>): Promise<T> {
  const key = `couponbook.lease.${name}`
  const mine = Math.random().toString(36).slice(2)
  for (;;) {
    const [owner, until] = (localStorage.getItem(key) ?? '').split(' ')
    if (!owner || Number(until) < Date.now()) {
      localStorage.setItem(key, `${mine} ${Date.now() + LEASE_MS}`)
      await pause(30)
      if (localStorage.getItem(key)?.startsWith(mine)) break
    }
    await pause(50 + Math.random() * 50)
  }
  try {
    return await work()
  } finally {
    if (localStorage.getItem(key)?.startsWith(mine)) localStorage.removeItem(key)
  }
}
