/** Coupons or redemptions of a book as a file. */
import { api, body, type Schemas } from './client'

export type NewExport = Schemas['ExportRequest']

export const exportsOf = {
  create: (wanted: NewExport) => body(api.POST('/v1/exports', { body: wanted })),
  /** Where the file of an export lies once its job has succeeded. */
  file: (id: string) => `/v1/exports/${id}/file`,
}
