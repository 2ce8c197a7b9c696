/** What a refused or failed request says, in the shape of RFC 9457, whoever noticed: the service or this page. */
import type { components } from './schema'

export type ProblemBody = components['schemas']['Problem']

/** One fault of a field; `pointer` is a JSON pointer into the body (`/name`) or `?name` for a query parameter. */
export interface FieldFault {
  pointer: string
  code: string
  detail: string
}

/** An answer that is no success, or no answer at all (`status` 0). */
export class Problem extends Error {
  readonly status: number
  readonly code: string
  readonly title: string
  readonly detail: string
  readonly requestId: string | null
  readonly faults: FieldFault[]
  /** Seconds after which to try again, if the service said so. */
  readonly retryAfter: number | null

  constructor(body: Partial<Omit<ProblemBody, 'code'>> & { code: string }, status: number, retryAfter: number | null = null) {
    super(body.detail || body.title || body.code)
    this.name = 'Problem'
    this.status = status
    this.code = body.code
    this.title = body.title ?? ''
    this.detail = body.detail ?? ''
    this.requestId = body.request_id ?? null
    this.faults = (body.errors as FieldFault[] | undefined) ?? []
    this.retryAfter = retryAfter
  }

  /** Whether the same request may well succeed a little later. */
  get isPassing(): boolean {
    return this.status === 0 || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504
  }

  /** The fault of a member of the body, if there is one. */
  fault(member: string): string | undefined {
    return this.faults.find((fault) => fault.pointer === `/${member}` || fault.pointer === `?${member}`)?.detail
  }
}

/** The service could not be reached. */
export function unreachable(): Problem {
  return new Problem({ code: 'unreachable' }, 0)
}

/** Reads the problem out of an answer; one that did not come from the service (a proxy's page) gets its status. */
export async function problemOf(response: Response): Promise<Problem> {
  const after = Number.parseInt(response.headers.get('retry-after') ?? '', 10)
  const retryAfter = Number.isFinite(after) ? after : null
  try {
    const body = (await response.clone().json()) as Partial<ProblemBody>
    if (typeof body.code === 'string') return new Problem({ ...body, code: body.code }, response.status, retryAfter)
  } catch {
    // not JSON: below
  }
  const requestId = response.headers.get('x-request-id') ?? undefined
  return new Problem({ code: 'unexpected', request_id: requestId }, response.status, retryAfter)
}

/** Anything thrown, as a problem. */
export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof TypeError) return unreachable()
  return new Problem({ code: 'unexpected', detail: String(error) }, 0)
}
