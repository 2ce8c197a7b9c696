/**
 * The newest lines of a job's errors while it runs. The service lists them oldest first, so the end is followed: each
 * time from the last page that was read, a few pages at most.
 */
import { api, body, type Schemas } from '@/api/client'

export type ErrorLine = Schemas['ErrorLine']

const PAGE = 100
const PAGES_AT_ONCE = 10

export function errorTail(jobId: string, most: number): () => Promise<ErrorLine[]> {
  let cursor: string | undefined
  let before: ErrorLine[] = []
  return async () => {
    for (let n = 0; ; n++) {
      const page = await body(api.GET('/v1/jobs/{id}/errors', { params: { path: { id: jobId }, query: { cursor, limit: PAGE } } }))
      const newest = [...before, ...page.data].slice(-most)
      if (page.next_cursor === null || n + 1 === PAGES_AT_ONCE) return newest
      cursor = page.next_cursor
      before = newest
    }
  }
}
