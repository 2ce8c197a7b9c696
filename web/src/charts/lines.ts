/** Lines over time, as charts draw them. */
export interface Line {
  name: string
  values: (number | null)[]
  colour: string
  fill?: boolean
}

/** Whether there is nothing to see: no moment, or nothing but noughts. */
export const isFlat = (lines: Line[]): boolean => lines.every((line) => line.values.every((value) => !value))
